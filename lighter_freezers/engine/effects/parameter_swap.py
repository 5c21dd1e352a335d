"""A parameter of another shape in the place of an old one: the same Python object wherever torch allows it.

Whoever knows the parameter, such as an optimizer built before the Trainer ran, then knows the new one.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine import ledger

__all__ = ["options_of", "reshape_parameter"]


def reshape_parameter(
    owner: nn.Module, name: str, value: Tensor, optimizers: Iterable[Optimizer] = ()
) -> tuple[Parameter, Parameter] | None:
    """Give a parameter a value of another shape; its gradient is gone, its flag and its holders stay.

    Its `.data` is not set, because a graph or a DDP reducer would go on with the old shape. Torch refuses to
    swap what a live graph, a DDP wrapper or a compiled function refers to. Then a new parameter takes the old
    one's place in the module, in the ledger and in the optimizers.

    Args:
        owner: The module that owns it, a `ParameterDict` too.
        name: Its name there.
        value: The new value; it is cast to the parameter's dtype.
        optimizers: Those that may know it. Their state for it is left to the caller.

    Returns:
        None where it is the same object still, else the old and the new parameter.
    """
    old = owner._parameters[name]
    assert old is not None, "only parameters that exist are reshaped"
    new = Parameter(value.detach().to(old, copy=True).contiguous(), requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)  # marks that others left on it; a swap would take them away
    if _swapped(old, new):
        return None
    owner.register_parameter(name, new)
    for optimizer in optimizers:
        _replace(old, new, optimizer)
    ledger.succeed(old, new)
    return old, new


def options_of(parameter: Parameter, optimizer: Optimizer) -> Mapping[str, Any] | None:
    """The options of the group a parameter is in; None if the optimizer does not know it."""
    for group in optimizer.param_groups:
        if any(member is parameter for member in group["params"]):
            return group
    return None


def _swapped(old: Parameter, new: Parameter) -> bool:
    with ledger.unobserved(old):
        try:
            torch.utils.swap_tensors(old, new)  # type: ignore[no-untyped-call]
        except RuntimeError:
            return False
    return True


def _replace(old: Parameter, new: Parameter, optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if member is old else member for member in group["params"]]
    if old in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(old)
