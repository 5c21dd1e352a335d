"""Sets the learning rate of thawed parameters, whatever an LR scheduler writes.

The rate of a group follows from the request alone, or from that of the group it was split from, which the LR
scheduler still controls. Nothing accumulates, so a resumed run has the same rates. Before each optimizer
step, and once its batch is computed, a call compares; it writes only where a scheduler, a warm-up or other
code has moved a rate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine.effects.optimizer_history import with_step_hooks
from lighter_freezers.engine.triggers import Moment

_Args: TypeAlias = tuple[object, ...]  # of `Optimizer.step`
_Named: TypeAlias = dict[str, object]

__all__ = ["KeptRate", "LearningRateRequest", "RateFactor", "Releasing", "ThawedGroup", "ThawedRates"]


@dataclass(frozen=True)
class LearningRateRequest:
    """The learning rate that a freezer requests for the parameters it releases.

    Attributes:
        absolute: The learning rate itself; None to follow the LR scheduler.
        factor: Times the learning rate that the LR scheduler gives to the rest of the group; in [0, inf).
        warmup_steps: Optimizer steps over which the rate rises linearly from zero: the first step after the
            thaw has 1/warmup_steps of it, step number `warmup_steps` the full rate. 0 means at once.
        growth: Times the rate after each epoch, until it is that of the rest of the group; None for none.
        weight_decay: The weight decay of what thaws; None for that of the group.
    """

    absolute: float | None = None
    factor: float = 1.0
    warmup_steps: int = 0
    growth: float | None = None
    weight_decay: float | None = None

    def target(self, scheduled: float | torch.Tensor, num_epochs: int = 0) -> float | torch.Tensor:
        """The rate after the warm-up, given what the LR scheduler gives to the rest of the group."""
        value = scheduled * self.factor if self.absolute is None else self.absolute
        if self.growth is not None:
            for _ in range(num_epochs):
                value = min(value * self.growth, scheduled)
        return value

    def ramp(self, steps_since_thaw: int) -> float:
        """The current share of the target, in (0, 1]."""
        if self.warmup_steps == 0:
            return 1.0
        return min(1.0, (steps_since_thaw + 1) / self.warmup_steps)


@dataclass(frozen=True)
class RateFactor:
    """Scales the learning rate of some parameters at each step, besides what the LR scheduler and rules set.

    Attributes:
        title: Names it in the optimizer's groups.
        parameters: They get groups of their own.
        at: Factor at a moment: at least 0, and the same on all ranks and after a resume.
    """

    title: str
    parameters: Sequence[Parameter]
    at: Callable[[Moment], float]


class Releasing(Protocol):
    """A holder of parameters that can release them."""

    def released_by(self, moment: Moment) -> int | None:
        """The optimizer step of the last release, which may be due only now; None before."""

    def epochs_since(self, moment: Moment) -> int:
        """Epochs since the last release."""

    @property
    def learning_rate(self) -> LearningRateRequest | None:
        """The rate it requests; None where it leaves the rate alone."""


_Asking: TypeAlias = tuple[Releasing, LearningRateRequest]


@dataclass(frozen=True)
class KeptRate:
    """A learning rate that some parameters keep, whatever the LR scheduler writes from a step on.

    Attributes:
        title: Names it in the optimizer's groups.
        step: The optimizer step from which on they keep it; what releases them later counts instead.
        rate: The rate.
        selected: The parameters, by name.
    """

    title: str
    step: int
    rate: float
    selected: Mapping[str, Parameter]

    def released_by(self, moment: Moment) -> int | None:
        """That step."""
        return self.step

    def epochs_since(self, moment: Moment) -> int:
        """Always 0: the rate does not grow."""
        return 0

    @property
    def learning_rate(self) -> LearningRateRequest:
        """That rate."""
        return LearningRateRequest(absolute=self.rate)


@dataclass
class ThawedGroup:
    """An optimizer group whose parameters the same freezers select, and the same factors scale.

    Where several freezers request a rate, the one that released last counts; on a tie, the lowest rate and
    the highest weight decay.
    """

    optimizer: Optimizer
    group_index: int  # not the group itself: loading a checkpoint replaces the group objects
    home_index: int
    freezers: Sequence[Releasing]
    factors: Sequence[RateFactor] = ()
    is_moving: bool = True  # whether the rate may differ at the next step though no other code writes one
    scheduled: object = None  # the rate of the home group that `written` was computed from
    written: object = None

    def set_learning_rate(self, moment: Moment) -> None:
        """Write the rate of this optimizer step into the group."""
        groups = self.optimizer.param_groups
        if "lr" not in groups[self.home_index]:  # the optimizer has no rates
            self.is_moving = False
            return
        group, scheduled = groups[self.group_index], groups[self.home_index]["lr"]
        asking = self._asking(moment)
        value = self._learning_rate(scheduled, moment, asking)
        for factor in self.factors:
            value = value * factor.at(moment)
            self.is_moving = True
        self.scheduled = scheduled
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].copy_(torch.as_tensor(value))
            self.scheduled = None  # written in place by schedulers, so that the object shows no change
        else:
            group["lr"] = value
        self.written = group["lr"]
        decays = [request.weight_decay for _, request in asking if request.weight_decay is not None]
        if decays:
            group["weight_decay"] = max(decays)

    def _learning_rate(
        self, scheduled: float | torch.Tensor, moment: Moment, asking: Sequence[_Asking]
    ) -> float | torch.Tensor:
        releases = [step for each in self.freezers if (step := each.released_by(moment)) is not None]
        self.is_moving = False
        if not asking:
            return scheduled  # not frozen yet, or not thawed yet
        since_thaw = max(0, moment.optimizer_step - max(releases))
        # what grows moves between two epochs, when all rates are written
        self.is_moving = any(request.ramp(since_thaw) < 1.0 for _, request in asking)
        return min(
            request.target(scheduled, each.epochs_since(moment) if request.growth else 0)
            * request.ramp(since_thaw)
            for each, request in asking
        )

    def _asking(self, moment: Moment) -> list[_Asking]:
        """The freezers of the last release that requests a rate, with what they request."""
        found = [(each.released_by(moment), each, each.learning_rate) for each in self.freezers]
        asking = [(step, each, request) for step, each, request in found if request and step is not None]
        latest = max((step for step, _, _ in asking), default=None)
        return [(each, request) for step, each, request in asking if step == latest]


class ThawedRates:
    """The rates of all groups of one fit that have requested ones.

    Args:
        groups: Those groups.
        moment: Returns the optimizer steps done so far, and the epoch.
        has_schedulers: Whether LR schedulers move the groups that these were split from.
    """

    def __init__(
        self, groups: Sequence[ThawedGroup], moment: Callable[[], Moment], *, has_schedulers: bool
    ) -> None:
        self._groups = groups
        self._moment = moment
        self._has_schedulers = has_schedulers
        self._set_at = -1  # the optimizer step of the last `set`
        self._hooks: list[RemovableHandle] = []
        for optimizer in {id(group.optimizer): group.optimizer for group in groups}.values():
            check = partial(self._check, optimizer)
            self._hooks.append(with_step_hooks(optimizer).register_step_pre_hook(check))

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def is_moving(self) -> bool:
        """Whether a rate will have moved after the next step."""
        return bool(self._groups) and (self._has_schedulers or any(each.is_moving for each in self._groups))

    def set(self) -> None:
        """Write all rates."""
        moment = self._moment() if self._groups else Moment(0, 0)
        self._set_at = moment.optimizer_step
        for group in self._groups:
            group.set_learning_rate(moment)

    def remove(self) -> None:
        """Leave the rates as they are from now on."""
        for hook in self._hooks:
            hook.remove()
        self._groups, self._hooks = [], []

    def _check(
        self, optimizer: Optimizer, _: object, args: _Args, named: _Named
    ) -> tuple[_Args, _Named] | None:
        """Before a step, and after the closure in which it computes the batch: that may write rates too."""
        self._keep(optimizer)
        closure = args[1] if len(args) > 1 else named.get("closure")
        if not callable(closure):
            return None
        kept = partial(self._keep, optimizer, closure)
        return ((args[0], kept, *args[2:]), named) if len(args) > 1 else (args, {**named, "closure": kept})

    def _keep(self, optimizer: Optimizer, closure: Callable[[], object] | None = None) -> object:
        loss, groups = closure() if closure else None, optimizer.param_groups
        for each in self._groups:
            if each.optimizer is optimizer and (
                (each.is_moving and self._moment().optimizer_step != self._set_at)
                or groups[each.group_index].get("lr") is not each.written
                or groups[each.home_index].get("lr") is not each.scheduled
            ):
                self.set()
                break
        return loss
