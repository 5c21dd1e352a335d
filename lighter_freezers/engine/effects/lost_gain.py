"""How much of a step's work a frozen prefix saves only if no gradient has to flow through it."""

from collections.abc import Iterable, Mapping

from torch.nn import Parameter

from lighter_freezers.selection.anatomy import Anatomy, Stack
from lighter_freezers.selection.element_counts import num_dimensions, size_of

__all__ = ["frozen_prefix", "lost_share"]


def frozen_prefix(stack: Stack, parameters: Mapping[str, Parameter]) -> int:
    """The number of leading blocks of a stack in which nothing trains.

    Args:
        stack: The blocks.
        parameters: Canonical name to parameter.
    """
    for number, block in enumerate(stack.blocks):
        if _trains(block, parameters):
            return number
    return len(stack.blocks)


def lost_share(
    anatomy: Anatomy, stack: Stack, parameters: Mapping[str, Parameter], *, is_checkpointed: bool = False
) -> float:
    """The share of a step's matrix products spent on gradients for what is below a frozen prefix.

    Counted by the elements of weight matrices W: a layer that trains needs three products with W (output,
    gradient of its input, gradient of W), a frozen layer that a gradient flows through needs two, and one
    without a gradient needs one. Checkpointing computes the output of a block again if a gradient flows
    through it.

    Args:
        anatomy: Of the model.
        stack: The one with the frozen prefix.
        parameters: Canonical name to parameter, of the whole model.
        is_checkpointed: Whether blocks are checkpointed.

    Returns:
        From 0 to 2/3.
    """
    again = 1 if is_checkpointed else 0
    num_frozen = frozen_prefix(stack, parameters)
    through = sum(_matrix_elements(block, parameters) for block in stack.blocks[:num_frozen])
    above = [
        block for other in anatomy.stacks for block in other.blocks[num_frozen if other is stack else 0 :]
    ]
    work = (2 + again) * through + _work((*anatomy.heads, *anatomy.tied), parameters)
    work += sum(_work(block, parameters) + again * _matrix_elements(block, parameters) for block in above)
    return (1 + again) * through / work if work else 0.0


def _work(names: Iterable[str], parameters: Mapping[str, Parameter]) -> int:
    return (3 if _trains(names, parameters) else 2) * _matrix_elements(names, parameters)


def _trains(names: Iterable[str], parameters: Mapping[str, Parameter]) -> bool:
    return any(parameters[name].requires_grad for name in names)


def _matrix_elements(names: Iterable[str], parameters: Mapping[str, Parameter]) -> int:
    return sum(size_of(parameters[name]) for name in names if num_dimensions(parameters[name]) > 1)
