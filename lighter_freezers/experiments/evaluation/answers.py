"""Generates text with a causal language model of transformers: batches of prompts, greedy or sampled.

Shapes: B batch, T prompt, N new tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lighter_freezers.arguments import at_least
from lighter_freezers.experiments.causal_models import CausalModel, Tokenizer, base_of
from lighter_freezers.experiments.data.batches import Batch, padded_inputs
from lighter_freezers.experiments.data.prompt_tokenizer import prompt_tokenizer
from lighter_freezers.gpt.generation import Sampling, evaluating

__all__ = [
    "AnswerText",
    "GenerationSettings",
    "answers_to",
    "generate_texts",
    "generate_tokens",
    "until_end",
]


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    Args:
        max_new_tokens: Tokens of an answer at most, including the end token.
        temperature: Of the sampling; 0 is greedy and always takes the most likely token.
        top_p: Sample among the most likely tokens that together reach this probability. None for all.
        top_k: Sample among this many most likely tokens. None for all.
        seed: Of the sampling. Each batch starts with it, so the same batch gets the same text every time.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens, 1)
        Sampling(self.temperature, self.top_k, self.top_p)
        at_least("seed", self.seed)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "GenerationSettings":  # `__post_init__` checks each
        """Those of the argument `generation`.

        Raises:
            TypeError: A key is unknown.
        """
        known = [field.name for field in fields(cls)]
        for key in values.keys() - known:
            raise TypeError(f"generation has no key {key!r}. Keys: {', '.join(known)}.")
        return cls(**values)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0


@runtime_checkable
class AnswerText(Protocol):
    """What decodes the tokens of an answer: a tokenizer, or a data module that has one."""

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special tokens."""


@torch.no_grad()
def generate_tokens(
    network: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    settings: GenerationSettings,
    *,
    eos_token_id: int,
) -> Tensor:
    """Continue prompts that are padded on the left, each until its end of text.

    Sampling, beams, minimum lengths and penalties of repetition in the model's own `generation_config` are
    overridden; what else it asks for, such as tokens to suppress, holds.
    Greedy text does not depend on which prompts share a batch, up to rounding.

    Args:
        network: A causal language model of transformers.
        input_ids: Prompts, (B, T), padded on the left with any token.
        attention_mask: 1 for real tokens, (B, T).
        settings: How to generate.
        eos_token_id: The end token. A finished sequence is filled up with it.

    Returns:
        The new tokens alone, (B, N), with N at most `max_new_tokens`.

    Raises:
        ValueError: Prompt and answer exceed the positions of the model.
    """
    base = base_of(network)
    _check_length(base, input_ids.shape[1], settings.max_new_tokens)
    with evaluating(network), _seeded(settings, input_ids.device):
        whole: Tensor = base.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            **_generation_options(settings, eos_token_id),
        )
    return whole[:, input_ids.shape[1] :]


def answers_to(network: nn.Module, batch: Batch, settings: GenerationSettings, text: AnswerText) -> list[str]:
    """The answers to a batch of prompts that are padded on the left, stripped.

    Args:
        network: A causal language model of transformers.
        batch: `input_ids` (B, T), and `attention_mask` (B, T) if a row is padded.
        settings: How to generate.
        text: Has the end token, and decodes tokens.
    """
    input_ids: Tensor = batch["input_ids"]
    given = batch.get("attention_mask")
    mask = torch.ones_like(input_ids) if given is None else given
    new = generate_tokens(network, input_ids, mask, settings, eos_token_id=text.eos_id)
    return [text.decode(row).strip() for row in until_end(new, text.eos_id)]


def generate_texts(
    network: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: GenerationSettings | None = None,
    *,
    batch_size: int = 8,
) -> list[str]:
    """Continue prompts with text, in the order in which they are given.

    Args:
        network: A causal language model of transformers, with an adapter of PEFT or without.
        tokenizer: Its tokenizer, of transformers, or a path. Its end-of-text token ends an answer.
        prompts: Texts to continue.
        settings: How to generate. None is greedy, 128 tokens at most.
        batch_size: Prompts per batch.

    Returns:
        The continuation of each prompt, without special tokens, stripped.
    """
    chosen, text = settings or GenerationSettings(), prompt_tokenizer(tokenizer)
    device = next(network.parameters()).device
    texts: list[str] = []
    for first in range(0, len(prompts), batch_size):
        encoded = text.encode_all(prompts[first : first + batch_size])
        rows = [torch.tensor([*text.begins_with, *ids], dtype=torch.long) for ids in encoded]
        batch = padded_inputs(rows, text.eos_id, side="left")
        texts += answers_to(network, {name: value.to(device) for name, value in batch.items()}, chosen, text)
    return texts


def until_end(tokens: Tensor, eos_token_id: int) -> list[list[int]]:
    """The tokens of each row before its end of text; all if there is none."""
    rows: list[list[int]] = tokens.tolist()
    return [row[: row.index(eos_token_id)] if eos_token_id in row else row for row in rows]


def _generation_options(settings: GenerationSettings, eos_token_id: int) -> Mapping[str, object]:
    """Every relevant value by name: in a config, some versions take the model's own value for a default."""
    sampled: Mapping[str, object] = (
        {}
        if settings.is_greedy
        else {
            "temperature": float(settings.temperature),
            "top_p": 1.0 if settings.top_p is None else float(settings.top_p),
            "top_k": settings.top_k or 0,
        }
    )
    return {
        **_NEUTRAL,
        **sampled,
        "max_new_tokens": settings.max_new_tokens,
        "do_sample": not settings.is_greedy,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
    }


_NEUTRAL: Mapping[str, object] = {
    "num_beams": 1,
    "min_new_tokens": 0,  # it comes before `min_length`, which some models' own configs have instead
    "use_cache": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


def _check_length(base: CausalModel, num_prompt_tokens: int, max_new_tokens: int) -> None:
    limit = getattr(base.config, "max_position_embeddings", None)
    if limit is not None and num_prompt_tokens + max_new_tokens > limit:
        raise ValueError(
            f"A prompt of {num_prompt_tokens} tokens and max_new_tokens={max_new_tokens} need "
            f"{num_prompt_tokens + max_new_tokens} positions, but {type(base).__name__} has {limit}. "
            "Lower max_new_tokens, or the data's max_length."
        )


@contextmanager
def _seeded(settings: GenerationSettings, device: torch.device) -> Iterator[None]:
    """Seed torch's generators, which transformers uses, in a `with` block, and restore them after."""
    if settings.is_greedy:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        yield
