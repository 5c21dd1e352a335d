"""Sets the learning rate of thawed parameters at every step, whatever an LR scheduler writes.

A group with a requested rate is set again before each optimizer step: from the request alone, or relative to
the group it was split from, which the LR scheduler still controls. Nothing accumulates, so a resumed run has
the same rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.optim import Optimizer

__all__ = ["LearningRateRequest", "Releasing", "ThawedGroup"]


@dataclass(frozen=True)
class LearningRateRequest:
    """The learning rate that a freezer requests for the parameters it releases.

    Attributes:
        absolute: The learning rate itself; None to follow the LR scheduler.
        factor: Times the learning rate that the LR scheduler gives to the rest of the group; in [0, inf).
        warmup_steps: Optimizer steps over which the rate rises linearly from zero: the first step after the
            thaw has 1/warmup_steps of it, step number `warmup_steps` the full rate. 0 means at once.
    """

    absolute: float | None = None
    factor: float = 1.0
    warmup_steps: int = 0

    def target(self, scheduled: float | torch.Tensor) -> float | torch.Tensor:
        """The rate after the warm-up, given what the LR scheduler gives to the rest of the group."""
        return scheduled * self.factor if self.absolute is None else self.absolute

    def ramp(self, steps_since_thaw: int) -> float:
        """The current share of the target, in (0, 1]."""
        if self.warmup_steps == 0:
            return 1.0
        return min(1.0, (steps_since_thaw + 1) / self.warmup_steps)


class Releasing(Protocol):
    """A holder of parameters that can release them."""

    released_at: int | None  # the optimizer step of the last release; None before

    @property
    def learning_rate(self) -> LearningRateRequest | None:
        """The rate it requests; None where it leaves the rate alone."""


@dataclass(frozen=True)
class ThawedGroup:
    """An optimizer group whose parameters the same freezers select.

    Where several of them request a rate, the one that released last counts; on a tie, the lowest rate.
    """

    optimizer: Optimizer
    group_index: int  # not the group itself: loading a checkpoint replaces the group objects
    home_index: int
    freezers: Sequence[Releasing]

    def set_learning_rate(self, optimizer_step: int) -> None:
        """Write the rate of this optimizer step into the group."""
        value = self._learning_rate(optimizer_step)
        group = self.optimizer.param_groups[self.group_index]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].copy_(torch.as_tensor(value))
        else:
            group["lr"] = value

    def _learning_rate(self, optimizer_step: int) -> float | torch.Tensor:
        scheduled: float | torch.Tensor = self.optimizer.param_groups[self.home_index]["lr"]
        releases = [freezer.released_at for freezer in self.freezers if freezer.released_at is not None]
        asking = [
            freezer for freezer in self.freezers if freezer.learning_rate and freezer.released_at is not None
        ]
        if not asking:
            return scheduled  # not frozen yet, or not thawed yet
        latest = max(freezer.released_at or 0 for freezer in asking)
        requests = [f.learning_rate for f in asking if f.released_at == latest and f.learning_rate]
        since_thaw = max(0, optimizer_step - max(releases))
        return min(request.target(scheduled) * request.ramp(since_thaw) for request in requests)
