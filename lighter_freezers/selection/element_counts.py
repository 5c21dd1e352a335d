"""Counts the elements of parameters, how many of them train, and the share that is frozen."""

from collections.abc import Iterable

from torch import nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

__all__ = [
    "distinct",
    "frozen_share",
    "frozen_share_text",
    "is_empty",
    "note_whole_sizes",
    "num_dimensions",
    "num_elements",
    "num_trainable",
    "size_of",
]


_WHOLE_SIZE = "_lighter_freezers_whole_size"  # an attribute of a parameter that FSDP1 has flattened


def note_whole_sizes(model: nn.Module) -> None:
    """Let `size_of` know the whole size of what FSDP1 flattens: a rank has part of it, or nothing.

    Args:
        model: With the wrappers around it.
    """
    for module in model.modules():
        flat = getattr(getattr(module, "_handle", None), "flat_param", None)
        parameters, shapes = getattr(flat, "_params", None) or (), getattr(flat, "_shapes", ())
        for parameter, shape in zip(parameters, shapes, strict=False):  # none of another wrapper
            setattr(parameter, _WHOLE_SIZE, shape.numel())


def size_of(parameter: Parameter) -> int:
    """The number of its elements on all ranks; 0 while its layer is lazy and has not seen a batch."""
    if is_lazy(parameter):
        return 0
    whole: int = getattr(parameter, _WHOLE_SIZE, 0)
    return whole or parameter.numel()


def is_empty(parameter: Parameter) -> bool:
    """Whether it has no elements, as the factors of LoRA have at rank 0."""
    return not is_lazy(parameter) and not size_of(parameter)


def num_dimensions(parameter: Parameter) -> int:
    """The number of its dimensions; 0 while its layer is lazy and has not seen a batch."""
    return 0 if is_lazy(parameter) else parameter.ndim


def distinct(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Each parameter once, in their order."""
    return list({id(parameter): parameter for parameter in parameters}.values())


def num_elements(parameters: Iterable[Parameter]) -> int:
    """The number of elements of some parameters."""
    return sum(map(size_of, parameters))


def num_trainable(parameters: Iterable[Parameter]) -> int:
    """The number of elements of those that train."""
    return sum(size_of(parameter) for parameter in parameters if parameter.requires_grad)


def frozen_share(num_trainable: int, num_elements: int) -> float:
    """The share of elements that does not train, from 0 to 1; 0 where there are none."""
    return (num_elements - num_trainable) / num_elements if num_elements else 0.0


def frozen_share_text(num_trainable: int, num_elements: int) -> str:
    """The share in three digits; more where it would read 100 % while something trains."""
    percent = 100 * frozen_share(num_trainable, num_elements)
    text = f"{percent:.3g}"
    if text != "100" or not num_trainable:
        return f"{text} % frozen"
    return f"{min(percent, 99.99):.2f} % frozen, {num_trainable:,} train"
