"""Optimizer parameter groups: every parameter that may thaw is in one, and LR schedulers follow.

Groups are only made at the start of a fit, in an order that depends on the arguments alone. `saved_groups.py`
maps those of a checkpoint to those of the run that resumes.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine.effects.foreign_schedulers import hide_newest_group, is_foreign
from lighter_freezers.engine.effects.optimizer_choice import (
    Neighbours,
    accepting_groups,
    described,
)
from lighter_freezers.engine.trainer_like import ParameterGroup, SchedulerLike
from lighter_freezers.selection.names import loggable

__all__ = [
    "PER_GROUP",
    "AddedGroup",
    "add_missing",
    "forget_state",
    "learning_rates",
    "parameters_in",
    "refuse_without_decay",
    "refuse_without_rates",
    "split_off",
    "without_rate",
]

# What torch's LR schedulers keep as one entry per parameter group.
PER_GROUP = ("base_lrs", "_last_lr", "min_lrs", "max_lrs", "lr_lambdas", "base_momentums", "max_momentums")


def parameters_in(optimizers: Iterable[Optimizer]) -> set[int]:
    """The ids of all parameters in an optimizer."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


@dataclass(frozen=True)
class AddedGroup:
    """A group of parameters that no optimizer knew, and the group whose options it has."""

    optimizer_index: int
    group_index: int
    home_index: int
    name: str
    members: list[str]


def add_missing(
    missing: Mapping[str, Parameter],
    names: Mapping[int, str],
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[SchedulerLike],
    *,
    asked: Mapping[str, int | str] | None = None,
    sparse: Collection[int] = (),
) -> list["AddedGroup"]:
    """Put parameters that are in no optimizer into a new group, with the options of their nearest relative.

    The optimizer is the one that trains their neighbours, see `Neighbours`. The nearest relative in it
    is the parameter with the longest common dotted name, preferably of the same number of dimensions, so that
    biases and norm weights end up without weight decay where such a group exists.

    Args:
        missing: Name -> parameter.
        names: Id -> name of every parameter of the model.
        optimizers: The Trainer's optimizers.
        schedulers: The Trainer's LR schedulers; those of an extended optimizer are extended too.
        asked: Name -> the optimizer that the user wants for it.
        sparse: Ids of parameters with sparse gradients.

    Returns:
        The new groups.

    Raises:
        ValueError: It is not clear which optimizer is meant, or none accepts a parameter.
    """
    homes: dict[tuple[int, int], dict[str, Parameter]] = {}
    unclear = []
    neighbours = Neighbours(optimizers, names)
    for name, parameter in missing.items():
        groups = [accepting_groups(optimizer, parameter, id(parameter) in sparse) for optimizer in optimizers]
        candidates = [index for index, accepting in enumerate(groups) if accepting]
        if not candidates:
            raise ValueError(
                f"{name} (of shape {tuple(parameter.shape)}) will thaw, and no optimizer of the run accepts "
                f"it: {described(optimizers, names)}. Add one that does to configure_optimizers, or keep it "
                "frozen for the whole run."
            )
        chosen = neighbours.optimizer(name, candidates, (asked or {}).get(name))
        if chosen is None:
            unclear.append(name)
            continue
        home = neighbours.group(name, parameter, chosen, groups[chosen])
        homes.setdefault((chosen, home), {})[name] = parameter
    if unclear:
        raise ValueError(_unclear(unclear, optimizers, names))
    added = []
    for (optimizer_index, home_index), parameters in sorted(homes.items(), key=lambda item: item[0]):
        group_name = f"thawed-{home_index + 1}"
        _add_group(optimizers[optimizer_index], home_index, parameters, group_name, schedulers)
        group_index = len(optimizers[optimizer_index].param_groups) - 1
        added.append(AddedGroup(optimizer_index, group_index, home_index, group_name, list(parameters)))
    return added


def _unclear(missing: Sequence[str], optimizers: Sequence[Optimizer], names: Mapping[int, str]) -> str:
    shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return (
        f"{shown} will thaw, but no optimizer knows them, and their nearest modules are trained by several: "
        f"{described(optimizers, names)}. Say which optimizer takes them (`optimizer: 1`, the name of its "
        "class or of a module it trains, in a Freezer or GradualUnfreezing), or give it all of its "
        "parameters in configure_optimizers, frozen ones too."
    )


def split_off(
    parameters: Mapping[str, Parameter],
    group_name: str,
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[SchedulerLike],
) -> list[tuple[Optimizer, int, int]]:
    """Move parameters into groups of their own, one for each group that had some of them.

    The old group stays, even if it is empty now: LR schedulers still control it, and the new group's rate can
    be set relative to it.

    Returns:
        Optimizer, index of the new group, index of the old group.

    Raises:
        ValueError: An optimizer has no rates.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    group_name = loggable(group_name)
    moved: list[tuple[Optimizer, int, int]] = []
    for optimizer in optimizers:
        for index, home in enumerate(list(optimizer.param_groups)):
            leaving = {names[id(p)]: p for p in home["params"] if id(p) in names}
            if not leaving:
                continue
            refuse_without_rates(optimizer, f"{group_name.rpartition(' - ')[0]} sets a learning rate")
            _remove(home, leaving.values())
            unique_name = group_name if not moved else f"{group_name} {len(moved) + 1}"
            _add_group(optimizer, index, leaving, unique_name, schedulers)
            moved.append((optimizer, len(optimizer.param_groups) - 1, index))
    return moved


def without_rate(parameters: Iterable[Parameter], optimizers: Iterable[Optimizer]) -> list[Parameter]:
    """Those of some parameters that are in a group with the learning rate 0."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    idle = [group for group in _rated(groups) if not float(group["lr"])]
    ids = {id(parameter) for parameter in parameters} if idle else set[int]()
    return [parameter for group in idle for parameter in group["params"] if id(parameter) in ids]


def learning_rates(optimizers: Iterable[Optimizer]) -> list[tuple[list[Parameter], Callable[[], float]]]:
    """The parameters of each group that has a rate, and a function that reads the rate."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [(group["params"], partial(_rate, group)) for group in _rated(groups)]


def refuse_without_rates(optimizer: Optimizer, needs: str) -> None:
    """Raise for an optimizer that computes its own rates: none in its groups (A2Grad), or None (Adafactor).

    Raises:
        ValueError: The message begins with what needs them.
    """
    if any(group.get("lr") is None for group in optimizer.param_groups):
        raise ValueError(
            f"{needs}, and {type(optimizer).__name__} has no learning rate in its groups. Remove that, or "
            "give the optimizer one."
        )


def refuse_without_decay(optimizers: Iterable[Optimizer]) -> None:
    """Raise for an optimizer without weight decay, such as LBFGS.

    Raises:
        ValueError: One of them has none in its groups.
    """
    for optimizer in optimizers:
        if not all("weight_decay" in group for group in optimizer.param_groups):
            raise ValueError(
                f"unfreeze_weight_decay is set, and {type(optimizer).__name__} has no weight decay in its "
                "groups. Remove it, or use an optimizer with one."
            )


def _rated(groups: Iterable[ParameterGroup]) -> list[ParameterGroup]:
    return [group for group in groups if group.get("lr") is not None]  # Adafactor has None, A2Grad no entry


def _rate(group: ParameterGroup) -> float:
    return float(group["lr"])


def forget_state(parameters: Iterable[Parameter], optimizers: Iterable[Optimizer]) -> None:
    """Drop the optimizers' state of parameters: frees memory, and moments start from 0 after a thaw."""
    parameters = list(parameters)
    for optimizer in optimizers:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)


def _remove(group: ParameterGroup, leaving: Iterable[Parameter]) -> None:
    ids = {id(parameter) for parameter in leaving}
    keep = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in ids]
    for key in ("params", "param_names"):
        if key in group:
            group[key] = [group[key][index] for index in keep]


def _add_group(
    optimizer: Optimizer,
    home_index: int,
    parameters: Mapping[str, Parameter],
    group_name: str,
    schedulers: Sequence[SchedulerLike],
) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS supports one parameter group only. Put every parameter into it when you build it, "
            "and remove unfreeze_lr, unfreeze_lr_factor and warmup_steps."
        )
    home = optimizer.param_groups[home_index]
    options = {key: _copy(value) for key, value in home.items() if key not in ("params", "param_names")}
    has_names = "param_names" in home
    members = list(parameters.items()) if has_names else list(parameters.values())
    optimizer.add_param_group({**options, "params": members, "name": group_name})
    _extend_rates(optimizer, home_index)
    for scheduler in schedulers:
        _extend(scheduler, optimizer, home_index)


def _extend_rates(optimizer: Optimizer, home_index: int) -> None:
    """Extend a list of the rates that the groups were built with: AdaBound steps no group beyond it."""
    rates = [group.get("initial_lr", group.get("lr")) for group in optimizer.param_groups[:-1]]
    for value in vars(optimizer).values():
        if isinstance(value, list) and all(isinstance(rate, float) for rate in value) and value == rates:
            value.append(value[home_index])


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _extend(scheduler: SchedulerLike, optimizer: Optimizer, home_index: int) -> None:
    """Make a scheduler and its parts treat the newest group like the group it came from."""
    if is_foreign(scheduler):
        if getattr(scheduler, "optimizer", optimizer) is optimizer:
            hide_newest_group(scheduler, optimizer, home_index)
        return
    for part in getattr(scheduler, "_schedulers", ()):
        _extend(part, optimizer, home_index)
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    num_groups_before = len(optimizer.param_groups) - 1
    for key in PER_GROUP:
        entries = getattr(scheduler, key, None)
        if isinstance(entries, list) and len(entries) == num_groups_before:
            # a new list: SequentialLR shares the list of its parts
            setattr(scheduler, key, [*entries, _copy(entries[home_index])])
