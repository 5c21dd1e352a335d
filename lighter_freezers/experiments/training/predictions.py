"""What `trainer.predict` returns in each mode.

Shapes: B batch, T time, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lighter_freezers.arguments import at_least, count
from lighter_freezers.experiments.evaluation.mode_figures import TensorBatch
from lighter_freezers.gpt.config import ModelMode
from lighter_freezers.gpt.generation import Sampling
from lighter_freezers.gpt.model import GPT

__all__ = ["Continuation", "Predictor", "predictor_of"]

Predictor = Callable[[GPT, TensorBatch, object], object]  # model, batch, data module or None -> predictions


@dataclass(frozen=True)
class Continuation:
    """How a language model continues a sequence.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens, 1)
        Sampling(self.temperature, self.top_k, self.top_p)
        count("eos_token_id", self.eos_token_id)

    def __call__(self, network: GPT, batch: TensorBatch, datamodule: object) -> Tensor | dict[str, object]:
        """The new tokens, (B, max_new_tokens), and their text if the data module can decode it."""
        input_ids, mask = batch["input_ids"], batch.get("attention_mask")
        if mask is None:
            tokens = self._continue(network, input_ids)
        else:
            tokens = input_ids.new_empty(len(input_ids), self.max_new_tokens)
            lengths = mask.sum(dim=1)
            for length in set(lengths.tolist()):  # padding cannot be continued
                tokens[lengths == length] = self._continue(network, input_ids[lengths == length, :length])
        decode = getattr(datamodule, "decode", None)
        return tokens if decode is None else {"tokens": tokens, "text": [decode(row) for row in tokens]}

    def _continue(self, network: GPT, input_ids: Tensor) -> Tensor:
        continued = network.generate(
            input_ids,
            self.max_new_tokens,
            self.temperature,
            self.top_k,
            top_p=self.top_p,
            eos_token_id=self.eos_token_id,
        )
        return continued[:, input_ids.shape[1] :]


def labelled(network: GPT, batch: TensorBatch, datamodule: object) -> list[list[tuple[object, object]]]:
    """The tokens of each row with their classes, by name where the data module has names."""
    input_ids, mask = batch["input_ids"], batch.get("attention_mask")
    classes = network(input_ids, attention_mask=mask)[0].argmax(dim=-1)  # (B, T, K) -> (B, T)
    is_real = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    decode, names = getattr(datamodule, "decode", None), getattr(datamodule, "class_names", None)
    return [
        [
            (token if decode is None else decode([token]), number if names is None else names[number])
            for token, number in zip(row[real].tolist(), found[real].tolist(), strict=True)
        ]
        for row, found, real in zip(input_ids, classes, is_real, strict=True)
    ]


def scored(network: GPT, batch: TensorBatch, datamodule: object) -> Tensor:
    """A score for each row, (B)."""
    scores: Tensor = network(batch["input_ids"], attention_mask=batch.get("attention_mask"))[0]
    return scores


def predictor_of(mode: ModelMode | str, continuation: Continuation) -> Predictor:
    """The prediction function of a mode.

    Raises:
        ValueError: An option is for another mode.
    """
    if mode == ModelMode.LANGUAGE_MODEL:
        return continuation
    options: Sequence[str] = ("top_k", "top_p", "eos_token_id")
    given = [name for name in options if getattr(continuation, name) is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)}: for mode: {ModelMode.LANGUAGE_MODEL}, which generates text. "
            f"Here the mode is {mode}: leave them out."
        )
    return labelled if mode == ModelMode.TOKEN_CLASSIFIER else scored
