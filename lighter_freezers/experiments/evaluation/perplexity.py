"""The perplexity of a causal language model over the tokens of correct answers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lighter_freezers.experiments.data.batches import Batch
from lighter_freezers.experiments.evaluation.answer_loss import answer_nats, lean_batch
from lighter_freezers.gpt.generation import evaluating

__all__ = ["AnswerLikelihood", "perplexity"]


class AnswerLikelihood(Metric):
    """Loss and perplexity over all answer tokens: exact over batches of different sizes, and over ranks."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    nats: Tensor
    num_tokens: Tensor

    def __init__(self, **options: Any) -> None:  # those of every torchmetrics Metric
        super().__init__(**options)
        self.add_state("nats", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, nats: Tensor, num_tokens: Tensor) -> None:
        """Add one batch.

        Args:
            nats: The sum of the cross-entropies of its answer tokens.
            num_tokens: The number of these tokens.
        """
        self.nats = self.nats + nats  # not in place: after `trainer.validate` these are inference tensors
        self.num_tokens = self.num_tokens + num_tokens

    def compute(self) -> dict[str, Tensor]:
        """`loss` in nats per answer token, and its exponential `perplexity`; NaN without tokens."""
        loss = self.nats / self.num_tokens
        return {"loss": loss, "perplexity": loss.exp()}


@torch.no_grad()
def perplexity(network: nn.Module, batches: Iterable[Batch]) -> float:
    """The perplexity of a model over the answers of batches: exp of the mean loss of their tokens.

    Args:
        network: A causal language model of transformers.
        batches: `input_ids`, `attention_mask` and `labels`, as a `GenerationDataModule` gives them for
            training and validation. Tokens with the label -100, of prompts and padding, are ignored.

    Returns:
        At least 1, which means that the model is certain of every answer. NaN if there is no answer.
    """
    device = next(network.parameters()).device
    nats, num_tokens = torch.tensor(0.0, device=device), torch.tensor(0, device=device)
    with evaluating(network):
        for batch in batches:
            lean = lean_batch(batch).items()
            moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in lean}
            of_batch = answer_nats(network, moved)
            nats, num_tokens = nats + of_batch[0], num_tokens + of_batch[1]
    return float((nats / num_tokens).exp())
