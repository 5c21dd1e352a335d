"""How well a language model predicts a text: totals over batches and ranks, then ratios."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lighter_freezers.experiments.evaluation.mode_figures import Batch, Figures, targets_of

__all__ = ["TextLikelihood"]


class TextLikelihood(Figures):
    """Loss, perplexity and bits per byte of a text.

    Bits per byte are the total nats over ln 2, divided by the bytes of text: models with different tokenizers
    can be compared by it, and compressors too.

    Args:
        ignore_index: The target of positions that do not count.
    """

    nats: Tensor
    num_tokens: Tensor
    num_bytes: Tensor

    def __init__(self, ignore_index: int, **options: Any) -> None:
        super().__init__(**options)
        self.ignore_index = ignore_index
        self.add_state("nats", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_bytes", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, batch: Batch) -> None:
        """Add one batch.

        Args:
            predictions: Logits of the next token, (B, T, V).
            batch: `targets`, the tokens that came, (B, T), and `num_bytes`, the bytes of text that the
                targets of each row stand for, (B).
        """
        targets = targets_of(batch, self.ignore_index).flatten()  # (N)
        logits = predictions.flatten(0, 1).float()  # (N, V)
        nats = F.cross_entropy(logits, targets, ignore_index=self.ignore_index, reduction="sum")
        self.nats = self.nats + nats
        self.num_tokens = self.num_tokens + (targets != self.ignore_index).sum()
        self.num_bytes = self.num_bytes + batch["num_bytes"].sum()

    def compute(self) -> dict[str, Tensor]:
        """`loss` in nats per token, its exponential `perplexity`, and `bits_per_byte`."""
        loss = self.nats / self.num_tokens
        bits_per_byte = self.nats / math.log(2) / self.num_bytes
        return {"loss": loss, "perplexity": loss.exp(), "bits_per_byte": bits_per_byte}
