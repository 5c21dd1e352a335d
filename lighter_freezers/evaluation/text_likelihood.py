"""How well a language model predicts a text: totals over batches and ranks, then ratios."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

__all__ = ["TextLikelihood"]


class TextLikelihood(Metric):
    """Loss, perplexity and bits per byte of a text, exact over unequal batches and ranks.

    Bits per byte are the total nats over ln 2, divided by the bytes of text: models with different tokenizers
    can be compared by it, and compressors too.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    nats: Tensor
    num_tokens: Tensor
    num_bytes: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("nats", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_bytes", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor, num_bytes: Tensor) -> None:
        """Add one batch.

        Args:
            logits: Of the next token, (B, T, V).
            targets: The tokens that came, (B, T); negative where there is none.
            num_bytes: Bytes of text that the targets of each row stand for, (B).
        """
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        # Not `+=`: after `trainer.validate` the totals are inference tensors, which a fit could not change.
        self.nats = self.nats + nats
        self.num_tokens = self.num_tokens + (targets >= 0).sum()
        self.num_bytes = self.num_bytes + num_bytes.sum()

    def compute(self) -> dict[str, Tensor]:
        """`loss` in nats per token, its exponential `perplexity`, and `bits_per_byte`."""
        loss = self.nats / self.num_tokens
        bits_per_byte = self.nats / math.log(2) / self.num_bytes
        return {"loss": loss, "perplexity": loss.exp(), "bits_per_byte": bits_per_byte}
