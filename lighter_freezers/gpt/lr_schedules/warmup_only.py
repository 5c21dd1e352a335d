"""A warm-up, a plateau, and a linear decay."""

from typing import overload

import torch
from torch import Tensor

from lighter_freezers.arguments import at_least, count, fraction, positive
from lighter_freezers.gpt.lr_schedules.optional_optimizer import (
    OptionalOptimizerLR,
    last_iteration,
    share,
    warmed_up,
)

__all__ = ["WarmupOnlyScheduler"]


class WarmupOnlyScheduler(OptionalOptimizerLR):
    """The rate rises, stays constant, and, if the run has a known end, decays linearly.

    With i the iteration, counted from 0 in optimizer steps:

        lr(i) = learning_rate (i + 1) / (warmup_iters + 1)    during the warm-up
                learning_rate                                 for hold_iters more
                learning_rate (1 - (1 - min_lr_ratio) p)      after; begin = warmup_iters + hold_iters, and
                                                              p = (i - begin) / (max_iters - begin), at most 1

    The formulas are those of the multi-mode GPT's scheduler, except for the decay: there it was called linear
    but was a hyperbola, 100 / (d + 100) for d iterations, without an end; here it is linear and ends at
    `max_iters`. A `hold_iters` of 0 is 0; there it became `warmup_iters`.

    As a torch scheduler it must advance at every optimizer step (`interval: step`).

    Args:
        optimizer: The optimizer whose rates to set. None to use `get_lr` alone.
        learning_rate: The rate of all parameter groups. None: each group keeps its own rate.
        warmup_iters: Iterations over which it rises.
        hold_iters: Iterations at the full rate before the decay. None: as many as of warm-up. Only used with
            `max_iters`.
        max_iters: The iteration at which the decay ends, usually the length of the run. None: no decay.
        min_lr_ratio: The rate at the end, relative to `learning_rate`, in [0, 1].

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value is out of range, there is no rate, or `hold_iters` without `max_iters`.

    Example:
        ```python
        from lighter_freezers.gpt.lr_schedules import WarmupOnlyScheduler

        scheduler = WarmupOnlyScheduler(learning_rate=1e-3, warmup_iters=99)
        assert scheduler.get_lr(49) == 5e-4
        ```
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        learning_rate: float | None = None,
        warmup_iters: int,
        hold_iters: int | None = None,
        max_iters: int | None = None,
        min_lr_ratio: float = 0.1,
    ) -> None:
        if learning_rate is None and optimizer is None:
            raise ValueError("There is no rate: give learning_rate, or an optimizer whose rates to use.")
        if hold_iters is not None and max_iters is None:
            raise ValueError(
                f"hold_iters={hold_iters} sets when the decay begins, but without max_iters there is none. "
                "Give max_iters, or leave hold_iters out."
            )
        self.learning_rate = None if learning_rate is None else positive("learning_rate", learning_rate)
        self.warmup_iters = at_least("warmup_iters", warmup_iters)
        hold = count("hold_iters", hold_iters)
        self.hold_iters = self.warmup_iters if hold is None else hold
        self._begin = self.warmup_iters + self.hold_iters
        self.max_iters = last_iteration(max_iters, self._begin)
        self.min_lr_ratio = fraction("min_lr_ratio", min_lr_ratio)
        super().__init__(optimizer)

    @overload
    def get_lr(self) -> list[float | Tensor]: ...

    @overload
    def get_lr(self, iter_num: int) -> float: ...

    def get_lr(self, iter_num: int | None = None) -> float | list[float | Tensor]:
        """The rate at an iteration.

        Args:
            iter_num: The iteration, from 0. None, as torch calls it, means the current one.

        Returns:
            The rate, where groups differ the highest one; for torch that of each parameter group.
        """
        if iter_num is None:
            return [*self.group_rates(self.last_epoch)]
        if self.learning_rate is None:
            return max(self.group_rates(iter_num))
        return self.learning_rate * self._shape(iter_num)

    def group_rates(self, iter_num: int) -> list[float]:
        """The rate of each parameter group of the optimizer at an iteration."""
        shape = self._shape(iter_num)
        return [
            (float(base) if self.learning_rate is None else self.learning_rate) * shape
            for base in self.base_lrs
        ]

    def _shape(self, iter_num: int) -> float:
        done = share(iter_num, self._begin, self.max_iters)
        return warmed_up(iter_num, self.warmup_iters) * (1 - (1 - self.min_lr_ratio) * done)
