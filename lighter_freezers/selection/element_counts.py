"""Counts the elements of parameters, how many of them train, and the share that is frozen."""

from collections.abc import Iterable

from torch.nn import Parameter

__all__ = ["distinct", "frozen_share", "num_elements", "num_trainable"]


def distinct(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Each parameter once, in their order."""
    return list({id(parameter): parameter for parameter in parameters}.values())


def num_elements(parameters: Iterable[Parameter]) -> int:
    """The number of elements of some parameters."""
    return sum(parameter.numel() for parameter in parameters)


def num_trainable(parameters: Iterable[Parameter]) -> int:
    """The number of elements of those that train."""
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def frozen_share(num_trainable: int, num_elements: int) -> float:
    """The share of elements that does not train, from 0 to 1; 0 where there are none."""
    return (num_elements - num_trainable) / num_elements if num_elements else 0.0
