"""Changes the shape of a parameter: the same Python object is kept wherever torch allows it.

Whatever refers to the parameter, such as an optimizer built before the Trainer ran, then refers to the new
one.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine import ledger
from lighter_freezers.engine.trainer_like import ParameterGroup

__all__ = ["KnownGroups", "groups_by_id", "reshape_parameter"]

KnownGroups = Mapping[Optimizer, dict[int, ParameterGroup]]


def groups_by_id(optimizers: Iterable[Optimizer]) -> KnownGroups:
    """For each optimizer, the group of each of its parameters by id: one search for all of them."""
    return {
        optimizer: {id(member): group for group in optimizer.param_groups for member in group["params"]}
        for optimizer in optimizers
    }


def reshape_parameter(
    owner: nn.Module, name: str, value: Tensor, groups: KnownGroups | None = None
) -> tuple[Parameter, Parameter] | None:
    """Give a parameter a value of another shape; its gradient is dropped, its flag and its holders stay.

    Its `.data` is not set, because a graph or a DDP reducer would keep using the old shape. Torch refuses to
    swap what a live graph, a DDP wrapper or a compiled function refers to. Then a new parameter takes the old
    one's place in the module, in the ledger and in the optimizers.

    Args:
        owner: The module that owns it, a `ParameterDict` too.
        name: Its name there.
        value: The new value, with memory of its own. It is cast to the parameter's dtype.
        groups: From `groups_by_id`, of the optimizers that may contain it. The caller takes care of their
            state for it.

    Returns:
        None where it is still the same object, else the old and the new parameter.
    """
    old = owner._parameters[name]
    assert old is not None, "only parameters that exist are reshaped"
    new = Parameter(value.to(old).contiguous(), requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)  # attributes set by other code; a swap would remove them
    if _swapped(old, new):
        return None
    owner.register_parameter(name, new)
    for optimizer, known in (groups or {}).items():
        _replace(old, new, optimizer, known)
    ledger.succeed(old, new)
    return old, new


def _swapped(old: Parameter, new: Parameter) -> bool:
    with ledger.unobserved(old):
        try:
            torch.utils.swap_tensors(old, new)  # type: ignore[no-untyped-call]
        except RuntimeError:
            return False
    return True


def _replace(old: Parameter, new: Parameter, optimizer: Optimizer, known: dict[int, ParameterGroup]) -> None:
    if (group := known.pop(id(old), None)) is not None:
        group["params"] = [new if member is old else member for member in group["params"]]
        known[id(new)] = group
    if old in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(old)
