"""Bytes of parameters, of their gradients, and of their optimizer state."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.planning.costs.optimizer_state import state_bytes
from lighter_freezers.selection.element_counts import distinct

__all__ = ["OptimizerLike", "gradient_bytes", "optimizer_state_bytes", "parameter_bytes"]

OptimizerLike: TypeAlias = Optimizer | Callable[[list[Parameter]], Optimizer] | None


def parameter_bytes(parameters: Iterable[Parameter]) -> int:
    """Bytes of the values of parameters; a tied one counts once."""
    return sum(parameter.nbytes for parameter in distinct(parameters))


def gradient_bytes(parameters: Iterable[Parameter]) -> int:
    """Bytes of the gradients of those parameters that require one; a tied one counts once."""
    return sum(parameter.nbytes for parameter in distinct(parameters) if parameter.requires_grad)


def optimizer_state_bytes(
    optimizer: OptimizerLike, parameters: Iterable[Parameter], *, also_frozen: bool = False
) -> int:
    """Bytes of optimizer state after the first step, step counters included.

    Exact for every class, such as Adafactor with its rows and columns: the class itself takes a step on meta
    tensors.

    Args:
        optimizer: An optimizer, whose groups and options are used and which is not changed; its class, or a
            function from parameters to an optimizer. None means AdamW.
        parameters: Those that require a gradient count, each once. One that is not in the optimizer is
            treated like its first group.
        also_frozen: Whether to count all of them, as if they required a gradient.

    Raises:
        ValueError: The optimizer keeps one state for all parameters, as LBFGS does.
    """
    trainable = [p for p in distinct(parameters) if p.requires_grad or also_frozen]
    if not trainable:
        return 0
    if not isinstance(optimizer, Optimizer):
        optimizer = (torch.optim.AdamW if optimizer is None else optimizer)(trainable)
    return state_bytes(optimizer, trainable)
