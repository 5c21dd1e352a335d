"""The learning rates of a fine-tuning: a short warm-up, then a decay to 0 at the end of the run, or none."""

import math
from typing import Literal

import torch

from lighter_freezers.gpt.lr_schedules.optional_optimizer import OptionalOptimizerLR, share, warmed_up

__all__ = ["Shape", "WarmupDecay"]

Shape = Literal["cosine", "linear", "constant"]


class WarmupDecay(OptionalOptimizerLR):
    """Each group's own rate times a shared shape.

    With i the iteration, counted from 0 in optimizer steps:

        s(i) = (i + 1) / (warmup_steps + 1)     during the warm-up
               (1 + cos(pi p)) / 2              after, `cosine`; p = (i - warmup) / (last - warmup), at most 1
               1 - p                            after, `linear`
               1                                after, `constant`

    Args:
        optimizer: The optimizer whose rates to set.
        shape: One of the three.
        warmup_steps: Optimizer steps over which the rates rise.
        num_steps: Optimizer steps of the run, where the decay ends; not used by `constant`.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, shape: Shape, warmup_steps: int, num_steps: int | None
    ) -> None:
        self.shape = shape
        self.warmup_steps = warmup_steps
        self.num_steps = num_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of each group at the current iteration."""
        return [float(base) * self._share_of_rate() for base in self.base_lrs]

    def _share_of_rate(self) -> float:
        rise = warmed_up(self.last_epoch, self.warmup_steps)
        if self.shape == "constant" or self.num_steps is None:
            return rise
        last = max(self.num_steps, self.warmup_steps + 1)
        done = share(self.last_epoch, self.warmup_steps, last)
        return rise * (1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2)
