"""Optimizer parameter groups: every parameter that may thaw is in one, and LR schedulers follow.

Groups are only made at the start of a fit, in an order that depends on the arguments alone, so that a resumed
run finds the groups that its checkpoint was saved with.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

__all__ = ["add_missing", "forget_state", "parameters_in", "split_off"]

_Group = dict[str, Any]

# What torch's LR schedulers keep as one entry per parameter group.
_PER_GROUP = ("base_lrs", "_last_lr", "min_lrs", "max_lrs", "lr_lambdas", "base_momentums", "max_momentums")


def parameters_in(optimizers: Iterable[Optimizer]) -> set[int]:
    """The ids of all parameters that an optimizer knows."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def add_missing(
    missing: Mapping[str, Parameter],
    names: Mapping[int, str],
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[Any],
) -> dict[str, list[str]]:
    """Give parameters that no optimizer knows a group of their own, like that of their nearest relative.

    The nearest relative is the parameter with the longest common dotted name, preferably of the same number
    of dimensions, so that biases and norm weights end up without weight decay where such a group exists.

    Args:
        missing: Name -> parameter.
        names: Id -> name of every parameter of the model.
        optimizers: The Trainer's optimizers.
        schedulers: The Trainer's LR schedulers; those of a grown optimizer grow along.

    Returns:
        Name of the new group -> names of the parameters in it.
    """
    homes: dict[tuple[int, int], dict[str, Parameter]] = {}
    for name, parameter in missing.items():
        homes.setdefault(_nearest_group(name, parameter, names, optimizers), {})[name] = parameter
    added = {}
    for (optimizer_index, group_index), parameters in sorted(homes.items(), key=lambda item: item[0]):
        group_name = f"thawed-{group_index + 1}"
        optimizer = optimizers[optimizer_index]
        _add_group(optimizer, group_index, parameters, group_name, schedulers)
        added[group_name] = list(parameters)
    return added


def split_off(
    parameters: Mapping[str, Parameter],
    group_name: str,
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[Any],
) -> list[tuple[Optimizer, int, int]]:
    """Move parameters into groups of their own, one for each group that had some of them.

    The old group stays, even if it is empty now: LR schedulers go on driving it, and the new group can be set
    relative to it.

    Returns:
        Optimizer, index of the new group, index of the old group.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    moved: list[tuple[Optimizer, int, int]] = []
    for optimizer in optimizers:
        for index, home in enumerate(list(optimizer.param_groups)):
            leaving = {names[id(p)]: p for p in home["params"] if id(p) in names}
            if not leaving:
                continue
            _remove(home, leaving.values())
            unique_name = group_name if not moved else f"{group_name} ({len(moved) + 1})"
            _add_group(optimizer, index, leaving, unique_name, schedulers)
            moved.append((optimizer, len(optimizer.param_groups) - 1, index))
    return moved


def forget_state(parameters: Iterable[Parameter], optimizers: Iterable[Optimizer]) -> None:
    """Drop what optimizers remember of parameters: memory is freed, and moments start afresh after a thaw."""
    parameters = list(parameters)
    for optimizer in optimizers:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)


def _nearest_group(
    name: str, parameter: Parameter, names: Mapping[int, str], optimizers: Sequence[Optimizer]
) -> tuple[int, int]:
    best, home = (-1, False), (0, 0)
    parts = name.split(".")
    for optimizer_index, optimizer in enumerate(optimizers):
        for group_index, group in enumerate(optimizer.param_groups):
            for other in group["params"]:
                depth = _common_length(parts, names.get(id(other), "").split("."))
                closeness = (depth, (other.ndim > 1) == (parameter.ndim > 1))
                if closeness > best:
                    best, home = closeness, (optimizer_index, group_index)
    return home


def _common_length(parts: Sequence[str], others: Sequence[str]) -> int:
    length = 0
    for part, other in zip(parts, others, strict=False):
        if part != other:
            break
        length += 1
    return length


def _remove(group: _Group, leaving: Iterable[Parameter]) -> None:
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
    schedulers: Sequence[Any],
) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS knows one parameter group only. Put every parameter into it when you build it, "
            "and remove unfreeze_lr, unfreeze_lr_factor and warmup_steps."
        )
    home = optimizer.param_groups[home_index]
    options = {key: _copy(value) for key, value in home.items() if key not in ("params", "param_names")}
    has_names = "param_names" in home
    members = list(parameters.items()) if has_names else list(parameters.values())
    optimizer.add_param_group({**options, "params": members, "name": group_name})
    for scheduler in schedulers:
        _extend(scheduler, optimizer, home_index)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _extend(scheduler: Any, optimizer: Optimizer, home_index: int) -> None:
    """Let a scheduler, and those it is made of, treat the newest group as it treats its home."""
    for part in getattr(scheduler, "_schedulers", ()):
        _extend(part, optimizer, home_index)
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    num_groups_before = len(optimizer.param_groups) - 1
    for key in _PER_GROUP:
        entries = getattr(scheduler, key, None)
        if isinstance(entries, list) and len(entries) == num_groups_before:
            # a new list: SequentialLR shares the list of its parts
            setattr(scheduler, key, [*entries, _copy(entries[home_index])])
