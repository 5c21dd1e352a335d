"""Keeps gradients without elements from optimizers: Adafactor and Muon divide by the size of a parameter."""

from collections.abc import Iterable

from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine import ledger
from lighter_freezers.selection.element_counts import is_empty

__all__ = ["EmptyGradients"]


class EmptyGradients:
    """The parameters without elements in some optimizers, such as LoRA of rank 0.

    They get a gradient under DDP, which waits for one of every parameter, and where their layer calls PEFT's
    forward, which may be at any step.
    """

    def __init__(self) -> None:
        self._found: dict[Optimizer, list[Parameter]] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def find(self, optimizers: Iterable[Optimizer]) -> None:
        """Find them in the groups as they are now."""
        every = {each: [p for group in each.param_groups for p in group["params"]] for each in optimizers}
        empty = {each: [p for p in own if is_empty(p)] for each, own in every.items()}
        self._found = {each: own for each, own in empty.items() if own}

    def drop(self, optimizer: Optimizer) -> None:
        """Before a step of an optimizer: leave it none of their gradients."""
        ledger.drop_gradients(self._found.get(optimizer, ()))
