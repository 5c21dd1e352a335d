"""Lets schedulers outside torch work on the groups that they were built with, and no others.

They keep values of each group under names of their own, and may insist on the number of groups. So the
groups that this package makes are out of the optimizer while such a scheduler works, and then get what it has
changed in the groups that they were made from.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isroutine

import torch
from torch.optim import Optimizer

from lighter_freezers.engine.trainer_like import ParameterGroup, SchedulerLike

__all__ = ["hide_newest_group", "is_foreign"]

_KNOWN = {"torch", "lighter_freezers"}  # they keep what `PER_GROUP` names
_OWN = {"params", "param_names", "name"}  # of each group, whatever it was made from


class _MadeGroups:
    """Groups of some optimizers, and those that they were made from."""

    def __init__(self) -> None:
        self._homes: dict[Optimizer, dict[int, int]] = {}  # by their indices
        self._is_hidden = False

    def add_newest(self, optimizer: Optimizer, home_index: int) -> None:
        self._homes.setdefault(optimizer, {})[len(optimizer.param_groups) - 1] = home_index

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Remove the added groups while the scheduler works, then apply its changes to them."""
        if self._is_hidden:  # a method of the scheduler calls another one
            yield
            return
        self._is_hidden, everyone = True, [(each, list(each.param_groups)) for each in self._homes]
        for optimizer, groups in everyone:  # in place: a scheduler may keep the list
            homes = self._homes[optimizer]
            optimizer.param_groups[:] = [each for index, each in enumerate(groups) if index not in homes]
        before = [[dict(group) for group in groups] for _, groups in everyone]
        try:
            yield
        finally:
            for (optimizer, groups), old in zip(everyone, before, strict=True):
                optimizer.param_groups[:] = groups
                for index, home in self._homes[optimizer].items():
                    _follow(groups[index], groups[home], old[home])
            self._is_hidden = False


class _SeesOwnGroups:
    """Marks the classes of schedulers that do not see the groups of this package."""

    __slots__ = ()
    _made_groups: _MadeGroups


def is_foreign(scheduler: SchedulerLike) -> bool:
    """Whether what a scheduler keeps for each group is unknown: it is neither torch's nor of this package."""
    return type(scheduler).__module__.partition(".")[0] not in _KNOWN


def hide_newest_group(scheduler: SchedulerLike, optimizer: Optimizer, home_index: int) -> None:
    """Keep the newest group of an optimizer from a scheduler, and let it follow the group it was made from.

    Raises:
        ValueError: The class of the scheduler fixes what its objects are.
    """
    if not isinstance(scheduler, _SeesOwnGroups):
        try:
            scheduler.__class__ = _without_added_groups(type(scheduler))
        except TypeError as error:
            raise ValueError(
                f"{type(scheduler).__name__} is no scheduler of torch, and its class cannot be extended to "
                "let thawed layers follow it. Give the optimizer all parameters in configure_optimizers, and "
                "remove unfreeze_lr, unfreeze_lr_factor and warmup_steps."
            ) from error
    assert isinstance(scheduler, _SeesOwnGroups)
    scheduler._made_groups.add_newest(optimizer, home_index)


def _without_added_groups(kind: type) -> type:
    """A class whose methods work without the groups of this package; nothing else differs."""
    made = _MadeGroups()

    def look_up(self: object, name: str) -> object:
        value = object.__getattribute__(self, name)
        return _without(made, value) if isroutine(value) and not name.endswith("__") else value

    own = {"__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(
        kind.__name__, (kind, _SeesOwnGroups), {**own, "_made_groups": made, "__getattribute__": look_up}
    )


def _without(made: _MadeGroups, method: Callable[..., object]) -> Callable[..., object]:
    @wraps(method)
    def call(*arguments: object, **keywords: object) -> object:
        with made.hidden():
            return method(*arguments, **keywords)

    return call


def _follow(group: ParameterGroup, home: ParameterGroup, before: ParameterGroup) -> None:
    """Copy the values that changed in the group that it was made from."""
    for key in home.keys() - _OWN:
        value = home[key]
        if isinstance(value, torch.Tensor):  # schedulers write in place
            group[key] = (
                value.clone() if not isinstance(group.get(key), torch.Tensor) else group[key].copy_(value)
            )
        elif value is not before.get(key):
            group[key] = value
