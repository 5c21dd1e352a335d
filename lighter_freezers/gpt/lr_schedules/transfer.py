"""The learning rates of a trunk that is thawed late and of the new head above it."""

import math
import warnings
from typing import overload

import torch
from torch import Tensor

from lighter_freezers.arguments import at_least, fraction, positive
from lighter_freezers.gpt.lr_schedules.groups import HEAD, TRUNK, parts_of_groups
from lighter_freezers.gpt.lr_schedules.optional_optimizer import (
    OptionalOptimizerLR,
    last_iteration,
    share,
    warmed_up,
)

__all__ = ["TransferLearningScheduler"]


class TransferLearningScheduler(OptionalOptimizerLR):
    """A high rate for a new head, and a low one for a pretrained trunk once it is thawed.

    With i the iteration, counted from 0 in optimizer steps, and s(i) a shape that both parts share:

        head(i)  = base_lr * head_lr_multiplier * s(i)
        trunk(i) = 0                                      while frozen
                   base_lr * unfreeze_lr_drop * s(i)      after

        s(i) = (i + 1) / (warmup_iters + 1)               at most 1, during the warm-up
               1                                          until feature_extraction_iters
               m + (1 - m) (1 + cos(pi p)) / 2            after, with m = min_lr_ratio and
                                                          p = (i - begin) / (max_iters - begin), at most 1
               where begin is the larger of feature_extraction_iters and warmup_iters

    The formulas are those of the multi-mode GPT's scheduler with two fixes. There the head lost its
    multiplier when the trunk was thawed, and its rate fell to a fiftieth; here it continues from its value.
    There p was d / (d + 1000) for d iterations since the thaw, which never reaches 1; here the decay ends at
    `max_iters`, and without one there is no decay.

    As a torch scheduler it writes these rates into parameter groups named `trunk` and `head`, as
    `trunk_and_head_groups` makes them, whatever rates these had; it must advance at every optimizer step
    (`interval: step`), and it assumes that the trunk is frozen during the first `feature_extraction_iters`.
    It freezes nothing: use the same number for a Freezer's `until_step`, or for the GPT's
    `unfreeze_at_iteration`. It warns if the trunk trains before or is still frozen after.

    ```python
    TransferLearningScheduler(base_lr=5e-5).get_lr(1000)              # {'transformer': 0.0, 'head': 5e-4}
    TransferLearningScheduler(base_lr=5e-5).get_lr(3000)              # {'transformer': 5e-6, 'head': 5e-4}
    TransferLearningScheduler(optimizer, base_lr=5e-5, max_iters=10_000)  # sets the groups' rates
    ```

    Args:
        optimizer: The optimizer whose rates to set. None to use `get_lr` alone.
        base_lr: The rate that the others are relative to.
        head_lr_multiplier: The head's rate relative to it.
        warmup_iters: Iterations over which the rates rise.
        feature_extraction_iters: Iterations for which the trunk is frozen. 0: never.
        unfreeze_lr_drop: The trunk's rate relative to `base_lr`.
        max_iters: The iteration at which the decay ends, usually the length of the run. None: no decay.
        min_lr_ratio: Both rates at the end, relative to their peak, in [0, 1].

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value is out of range, or the optimizer has other groups.

    Example:
        ```yaml
        scheduler:
          _target_: lighter_freezers.gpt.lr_schedules.TransferLearningScheduler
          optimizer: "@model::optimizer"
          base_lr: 5.0e-5
          feature_extraction_iters: 2000
          max_iters: 10000
        ```
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        base_lr: float = 5.0e-5,
        head_lr_multiplier: float = 10.0,
        warmup_iters: int = 500,
        feature_extraction_iters: int = 2000,
        unfreeze_lr_drop: float = 0.1,
        max_iters: int | None = None,
        min_lr_ratio: float = 0.1,
    ) -> None:
        self.base_lr = positive("base_lr", base_lr)
        self.head_lr_multiplier = positive("head_lr_multiplier", head_lr_multiplier)
        self.warmup_iters = at_least("warmup_iters", warmup_iters)
        self.feature_extraction_iters = at_least("feature_extraction_iters", feature_extraction_iters)
        self.unfreeze_lr_drop = positive("unfreeze_lr_drop", unfreeze_lr_drop)
        self._begin = max(self.feature_extraction_iters, self.warmup_iters)
        self.max_iters = last_iteration(max_iters, self._begin)
        self.min_lr_ratio = fraction("min_lr_ratio", min_lr_ratio)
        super().__init__(optimizer)

    @overload
    def get_lr(self) -> list[float | Tensor]: ...

    @overload
    def get_lr(self, iter_num: int, is_frozen: bool | None = None) -> dict[str, float]: ...

    def get_lr(
        self, iter_num: int | None = None, is_frozen: bool | None = None
    ) -> dict[str, float] | list[float | Tensor]:
        """The rates at an iteration.

        Args:
            iter_num: The iteration, from 0. None, as torch calls it, means the current one.
            is_frozen: Whether the trunk is frozen then. None: by `feature_extraction_iters`.

        Returns:
            `transformer` and `head` -> rate; for torch the rate of each parameter group.
        """
        if iter_num is None:
            return [*self.group_rates(self.last_epoch)]
        if is_frozen is None:
            is_frozen = iter_num < self.feature_extraction_iters
        shape = self._shape(iter_num)
        return {
            "transformer": 0.0 if is_frozen else self.base_lr * self.unfreeze_lr_drop * shape,
            "head": self.base_lr * self.head_lr_multiplier * shape,
        }

    def group_rates(self, iter_num: int) -> list[float]:
        """The rate of each parameter group of the optimizer at an iteration."""
        rates = self.get_lr(iter_num)
        of_part = {TRUNK: rates["transformer"], HEAD: rates["head"]}
        return [of_part[part] for part in parts_of_groups(self.optimizer)]

    def step(self, epoch: int | None = None) -> None:
        """Advance to the next iteration; call it after the optimizer's step.

        Raises:
            RuntimeError: There is no optimizer.
        """
        super().step(epoch)
        if self.feature_extraction_iters == 0:
            return
        if self.last_epoch == 1 and self._trunk_trains():
            warnings.warn(
                f"The trunk trains at a learning rate of 0 until iteration {self.feature_extraction_iters}. "
                "Freeze it until then, with a Freezer with that `until_step`, to save the backward pass.",
                stacklevel=2,
            )
        if self.last_epoch == self.feature_extraction_iters + 1 and not self._trunk_trains():
            warnings.warn(
                f"feature_extraction_iters={self.feature_extraction_iters} are over, but the whole trunk is "
                "still frozen. Give the same number to whatever freezes it.",
                stacklevel=2,
            )

    def _trunk_trains(self) -> bool:
        groups = zip(self.optimizer.param_groups, parts_of_groups(self.optimizer), strict=True)
        return any(
            parameter.requires_grad
            for group, part in groups
            if part == TRUNK
            for parameter in group["params"]
        )

    def _shape(self, iter_num: int) -> float:
        done = share(iter_num, self._begin, self.max_iters)
        decayed = self.min_lr_ratio + (1 - self.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2
        return warmed_up(iter_num, self.warmup_iters) * decayed
