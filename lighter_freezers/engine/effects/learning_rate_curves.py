"""Scales or restarts the whole curve of the learning rates, in the optimizers' groups and their schedulers.

A scheduler keeps its position, on a scaled curve: the values it computes from (`base_lrs`, `initial_lr`,
`max_lr`, `eta_min`, ...) are scaled together with the current rates, so later steps need no further work, and
a checkpoint of optimizer and scheduler contains everything.
"""

import copy
from collections.abc import Sequence

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lighter_freezers.engine.effects.optimizer_groups import refuse_without_rates
from lighter_freezers.engine.trainer_like import ParameterGroup, SchedulerLike

__all__ = ["RateCurves"]

_IN_GROUP = ("lr", "initial_lr", "max_lr", "min_lr")
_PER_GROUP = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")  # lists in schedulers, one entry per group
_FLOORS = ("eta_min", "default_min_lr")  # numbers in schedulers, shared by all groups


class RateCurves:
    """The learning rates of one fit, as they are when it starts.

    Create it after all groups exist and before a checkpoint is loaded.

    Args:
        optimizers: Those of the Trainer.
        schedulers: Its LR schedulers.

    Raises:
        RuntimeError: A scheduler is not a torch LRScheduler, so its curve is unknown.
        ValueError: An optimizer has no rates.
    """

    def __init__(self, optimizers: Sequence[Optimizer], schedulers: Sequence[SchedulerLike]) -> None:
        self._optimizers, self._schedulers = list(optimizers), list(schedulers)
        for scheduler in schedulers:
            if not isinstance(scheduler, LRScheduler):
                raise RuntimeError(
                    f"{type(scheduler).__name__} is not a torch LRScheduler, so set_lr, scale_lr and "
                    "reset_lr_schedule do not support it. Use a torch scheduler, or remove these operations."
                )
        for optimizer in self._optimizers:
            refuse_without_rates(optimizer, "set_lr, scale_lr and reset_lr_schedule change learning rates")
        for group in self._groups:
            group.setdefault("initial_lr", _copied(group["lr"]))
        self._first_rates = [
            [
                {key: _copied(group[key]) for key in _IN_GROUP if key in group}
                for group in optimizer.param_groups
            ]
            for optimizer in self._optimizers
        ]
        self._first_states = [copy.deepcopy(scheduler.state_dict()) for scheduler in schedulers]

    @property
    def has_schedule(self) -> bool:
        """Whether a scheduler controls the learning rates."""
        return bool(self._schedulers)

    @property
    def heights(self) -> list[float]:
        """The base rate of each group's curve; without a curve, or on a plateau, the current rate."""
        return [height for optimizer in self._optimizers for height in self._heights(optimizer)]

    @property
    def rates(self) -> list[float]:
        """The current learning rate of each group."""
        return [float(group["lr"]) for group in self._groups]

    def set_height(self, rate: float) -> None:
        """Scale the curve of every group so that its height is `rate`.

        Raises:
            RuntimeError: A group has the height 0.
        """
        if 0.0 in self.heights:
            raise RuntimeError("a parameter group has the learning rate 0, which no factor can change.")
        for optimizer in self._optimizers:
            self._scale(optimizer, [rate / height for height in self._heights(optimizer)])

    def scale(self, factor: float) -> None:
        """Scale the curve of every group by the same factor."""
        for optimizer in self._optimizers:
            self._scale(optimizer, [factor] * len(optimizer.param_groups))

    def restart(self) -> None:
        """Restart every schedule, warm-up included, at its current height."""
        for scheduler, state in zip(self._schedulers, self._first_states, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        for optimizer, first_rates in zip(self._optimizers, self._first_rates, strict=True):
            factors = []
            for group, first in zip(optimizer.param_groups, first_rates, strict=True):
                before = float(first["initial_lr"])
                factors.append(float(group["initial_lr"]) / before if before else 1.0)
                for key, value in first.items():
                    _put(group, key, value)
            self._scale(optimizer, factors)

    @property
    def _groups(self) -> list[ParameterGroup]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _heights(self, optimizer: Optimizer) -> list[float]:
        has_curve = any(_drives(scheduler, optimizer) for scheduler in self._schedulers)
        return [float(group["initial_lr" if has_curve else "lr"]) for group in optimizer.param_groups]

    def _scale(self, optimizer: Optimizer, factors: Sequence[float]) -> None:
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            for key in _IN_GROUP:
                if key in group:
                    _put(group, key, group[key] * factor)
        for scheduler in self._schedulers:
            _scale_scheduler(scheduler, optimizer, factors)


def _drives(scheduler: SchedulerLike, optimizer: Optimizer) -> bool:
    """Whether a scheduler computes the rates of an optimizer from its step, not from the current rates."""
    return scheduler.optimizer is optimizer and not isinstance(scheduler, ReduceLROnPlateau)


def _scale_scheduler(scheduler: SchedulerLike, optimizer: Optimizer, factors: Sequence[float]) -> None:
    """Scale the values that a scheduler and its parts compute from."""
    for part in getattr(scheduler, "_schedulers", ()):
        _scale_scheduler(part, optimizer, factors)
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    for key in _PER_GROUP:
        entries = getattr(scheduler, key, None)
        if isinstance(entries, list) and len(entries) <= len(factors):  # fewer: see `foreign_schedulers`
            # a new list: SequentialLR shares the list of its parts
            setattr(scheduler, key, [entry * factor for entry, factor in zip(entries, factors, strict=False)])
    for key in _FLOORS:
        floor = getattr(scheduler, key, None)
        if isinstance(floor, (int, float)) and factors:
            setattr(scheduler, key, floor * min(factors))


def _copied(value: float | torch.Tensor) -> float | torch.Tensor:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _put(group: ParameterGroup, key: str, value: float | torch.Tensor) -> None:
    """Write a rate; a tensor is updated in place, as compiled optimizers need it."""
    if isinstance(group[key], torch.Tensor):
        group[key].copy_(torch.as_tensor(value))
    else:
        group[key] = value
