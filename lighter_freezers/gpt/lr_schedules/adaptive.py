"""A learning rate that is lowered when the validation loss stops falling."""

import math
from typing import SupportsFloat, overload

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lighter_freezers.arguments import at_least, positive
from lighter_freezers.gpt.lr_schedules.optional_optimizer import check_optimizer, warmed_up

__all__ = ["AdaptiveScheduler"]

_PROGRESS = ("best", "num_bad_checks", "num_reductions", "num_optimizer_steps", "base_lrs", "_last_lr")


class AdaptiveScheduler(ReduceLROnPlateau):
    """The rate rises during a warm-up, and is lowered when the validation loss stops falling.

    With i the iteration, counted from 0 in optimizer steps, and n the reductions so far:

        lr(i) = max(initial_lr * factor^n, min_lr) * (i + 1) / (warmup_iters + 1)    the last at most 1

    A check of the loss is good if the loss is below all earlier ones, and bad otherwise (also if it is NaN).
    The `patience`-th consecutive bad check lowers the rate. Torch's `ReduceLROnPlateau` waits for one more,
    and has no warm-up. The formulas are those of the multi-mode GPT's scheduler.

    As a torch scheduler it counts the optimizer's steps itself, for the warm-up, and `step` takes the loss.
    It is a subclass of `ReduceLROnPlateau`, so Lightning calls it with the monitored metric:
    `scheduler_interval: epoch` and `scheduler_monitor: val/loss` of `GPTModule`.

    Args:
        optimizer: The optimizer whose rates to set. None to use `get_lr` alone.
        initial_lr: The rate of all parameter groups. None: each group keeps its own rate.
        patience: Consecutive bad checks that lower the rate, at least 1.
        factor: What the rate is multiplied by, in (0, 1).
        min_lr: The rate is never lowered below this; a rate that starts lower stays.
        warmup_iters: Iterations over which the rate rises.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value is out of range, or there is no rate.

    Example:
        ```python
        from lighter_freezers.gpt.lr_schedules import AdaptiveScheduler

        scheduler = AdaptiveScheduler(initial_lr=1e-4, patience=3, factor=0.5, min_lr=1e-6)
        assert [scheduler.step(loss) for loss in (1.0, 1.1, 1.1, 1.1)] == [False, False, False, True]
        assert scheduler.current_lr == 5e-5
        ```
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        initial_lr: float | None = None,
        patience: int = 3,
        factor: float = 0.5,
        min_lr: float = 1.0e-6,
        warmup_iters: int = 100,
    ) -> None:
        # the base makes Lightning pass a metric; `ReduceLROnPlateau.__init__` is not needed
        check_optimizer("AdaptiveScheduler", optimizer)
        if initial_lr is None and optimizer is None:
            raise ValueError("There is no rate: give initial_lr, or an optimizer whose rates to use.")
        self.initial_lr = None if initial_lr is None else positive("initial_lr", initial_lr)
        self._bad_checks_allowed = at_least("patience", patience, 1)
        self.factor = positive("factor", factor)
        if self.factor >= 1:
            raise ValueError(f"factor must be below 1. Got {factor}.")
        self.min_lr = positive("min_lr", min_lr)
        self.warmup_iters = at_least("warmup_iters", warmup_iters)
        self.best, self.num_bad_checks, self.num_reductions = math.inf, 0, 0
        self.num_optimizer_steps = 0
        self.base_lrs: list[float | Tensor] = []
        self._last_lr: list[float | Tensor] = []
        if optimizer is not None:
            self.optimizer = optimizer
            self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
            self._write()
            optimizer.register_step_post_hook(self._count_step)

    @property
    def current_lr(self) -> float:
        """The rate without the warm-up; where groups differ the highest one."""
        return max(self._rates())

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> bool:  # type: ignore[override]
        """Record the loss of a check.

        Args:
            metrics: The validation loss, a number or a tensor with one.
            epoch: Not used; part of torch's signature.

        Returns:
            Whether the rate was lowered.
        """
        loss = float(metrics)
        if loss < self.best:
            self.best, self.num_bad_checks = loss, 0
            return False
        self.num_bad_checks += 1
        if self.num_bad_checks < self._bad_checks_allowed:
            return False
        self.num_bad_checks = 0
        return self._reduce()

    @overload
    def get_lr(self) -> list[float | Tensor]: ...

    @overload
    def get_lr(self, iter_num: int) -> float: ...

    def get_lr(self, iter_num: int | None = None) -> float | list[float | Tensor]:
        """The rate at an iteration, after the reductions so far.

        Args:
            iter_num: The iteration, from 0. None, as torch calls it, means the current one.

        Returns:
            The rate, where groups differ the highest one; for torch that of each parameter group.
        """
        if iter_num is not None:
            return self.current_lr * warmed_up(iter_num, self.warmup_iters)
        ramp = warmed_up(self.num_optimizer_steps, self.warmup_iters)
        return [rate * ramp for rate in self._rates()]

    def state_dict(self) -> dict[str, object]:
        """The progress, as plain values."""
        return {key: value for key, value in vars(self).items() if key in _PROGRESS}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Restore the progress of a saved scheduler."""
        vars(self).update(state_dict)

    def _rates(self) -> list[float]:
        """The rates without the warm-up: one for each group, or one if there is no optimizer."""
        num_groups = max(1, len(self.base_lrs))
        bases = self.base_lrs if self.initial_lr is None else [self.initial_lr] * num_groups
        reduction = self.factor**self.num_reductions
        return [max(float(base) * reduction, min(float(base), self.min_lr)) for base in bases]

    def _reduce(self) -> bool:
        before = self._rates()
        self.num_reductions += 1
        if self._rates() == before:
            self.num_reductions -= 1
            return False
        if hasattr(self, "optimizer"):
            self._write()
        return True

    def _count_step(self, *_: object) -> None:
        self.num_optimizer_steps += 1
        if self.num_optimizer_steps <= self.warmup_iters:
            self._write()

    def _write(self) -> None:
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
