"""The size of an optimizer's state, measured by a step of its class on meta tensors."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.planning.costs.step_cost import tensors_in

__all__ = ["state_bytes"]

_Kind: TypeAlias = tuple[
    int, torch.Size, torch.dtype
]  # group, shape and dtype: all that the size of a state depends on

_PLAIN_STEP = {"fused": False, "foreach": False, "capturable": False}  # the others refuse meta tensors


def state_bytes(optimizer: Optimizer, parameters: Iterable[Parameter]) -> int:
    """Bytes of state that the first step of an optimizer makes for parameters, step counters included.

    Args:
        optimizer: Its class, groups and options are used. It is not changed.
        parameters: Distinct ones. One that is not in the optimizer is treated like its first group.

    Raises:
        ValueError: The optimizer keeps one state for all parameters, as LBFGS does.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS remembers all parameters together, so its memory cannot be divided among parameters. "
            "Ask about another optimizer."
        )
    groups = optimizer.param_groups
    home = {id(parameter): index for index, group in enumerate(groups) for parameter in group["params"]}
    counts: dict[_Kind, int] = defaultdict(int)
    for parameter in parameters:
        counts[home.get(id(parameter), 0), parameter.shape, parameter.dtype] += 1
    try:
        sizes = _sizes(optimizer, counts, "meta")
    except (RuntimeError, NotImplementedError):  # a class that reads values cannot use meta tensors
        sizes = _sizes(optimizer, counts, "cpu")
    return sum(number * sizes[kind] for kind, number in counts.items())


def _sizes(optimizer: Optimizer, kinds: Iterable[_Kind], device: str) -> dict[_Kind, int]:
    """Bytes of the state of one parameter of each kind."""
    standins = {kind: Parameter(torch.zeros(kind[1], dtype=kind[2], device=device)) for kind in kinds}
    twin = _twin(optimizer)
    twin.param_groups = [
        {**_plain(group), "params": [standin for kind, standin in standins.items() if kind[0] == index]}
        for index, group in enumerate(optimizer.param_groups)
    ]
    torch.autograd.backward([standin.sum() for standin in standins.values()])
    twin.step()
    return {
        kind: sum(each.nbytes for each in tensors_in(twin.state[standin]))
        for kind, standin in standins.items()
    }


def _twin(optimizer: Optimizer) -> Optimizer:
    """The same class and settings, without state, hooks and the wrapper of an LR scheduler."""
    twin: Optimizer = object.__new__(type(optimizer))
    own = {key: value for key, value in vars(optimizer).items() if key != "step"}
    hooks = {key: OrderedDict[int, object]() for key in own if key.endswith("_hooks")}
    twin.__setstate__({**own, **hooks, "state": defaultdict(dict)})
    return twin


def _plain(group: Mapping[str, object]) -> dict[str, object]:
    options = {key: 0.0 if isinstance(value, Tensor) else value for key, value in group.items()}
    options.pop("param_names", None)
    return {**options, **{key: value for key, value in _PLAIN_STEP.items() if key in options}}
