"""Checks what the methods of a policy return, which anyone may have written."""

import math
from collections.abc import Iterable, Mapping, Sequence

from torch.nn import Parameter

from lighter_freezers.selection.name_summary import first_few

__all__ = ["checked_choice", "checked_rate", "checked_units"]


def checked_units(title: str, units: object) -> dict[str, Sequence[Parameter]]:
    """What `units` of a policy returned.

    Raises:
        TypeError: It is no mapping from titles to parameters.
    """
    wish = "Return a mapping such as {'0': list(model.blocks[0].parameters())}."
    if not isinstance(units, Mapping):
        raise TypeError(f"{title}.units returned {type(units).__name__}. {wish}")
    checked: dict[str, Sequence[Parameter]] = {}
    for unit, parameters in units.items():
        if not isinstance(unit, str):
            raise TypeError(f"{title}.units has the title {unit!r}, and titles are texts. {wish}")
        is_many = isinstance(parameters, Iterable) and not isinstance(parameters, str)
        given = list(parameters) if is_many else [parameters]
        if wrong := [each for each in given if not isinstance(each, Parameter)]:
            raise TypeError(f"{title}.units has {wrong[0]!r} in '{unit}', which is no parameter. {wish}")
        checked[unit] = given
    return checked


def checked_rate(title: str, unit: str, factor: float) -> float:
    """What `rate` of a policy returned.

    Raises:
        ValueError: It is negative, infinite or not a number.
    """
    if not 0 <= factor < math.inf:
        raise ValueError(f"{title}.rate returned {factor!r} for '{unit}'. Return a factor of at least 0.")
    return factor


def checked_choice(title: str, chosen: object, units: Sequence[str]) -> frozenset[str]:
    """What `choose` of a policy returned.

    Raises:
        TypeError: It is no list of titles.
        ValueError: There is no such unit.
    """
    wish = "Return titles of units that can train."
    if isinstance(chosen, str) or not isinstance(chosen, Iterable):
        raise TypeError(f"{title}.choose returned {chosen!r}, which is no list of titles. {wish}")
    found = frozenset(chosen)
    if unknown := sorted(str(each) for each in found.difference(units)):
        raise ValueError(
            f"{title}.choose returned {first_few(unknown)}, and the units are {first_few(units)}. {wish}"
        )
    return found
