"""Which policies may be in one run: refuses those that would choose against each other."""

from collections.abc import Set
from dataclasses import dataclass

__all__ = ["Share", "refuse_together"]


@dataclass(frozen=True)
class Share:
    """What a policy has a say in.

    Attributes:
        title: Names the policy.
        units: Ids of the parameters in its units.
        rest: Ids of those that it freezes for the whole run.
        freezes: Whether it may freeze units; else it sets rates alone.
    """

    title: str
    units: Set[int]
    rest: Set[int]
    freezes: bool


def refuse_together(one: Share, other: Share) -> None:
    """Raise if two policies of a run choose among the same parameters.

    Raises:
        RuntimeError: They do, or what one freezes for the whole run are units of the other.
    """
    titles = f"{one.title} and {other.title}"
    if one.units & other.units and one.freezes and other.freezes:
        raise RuntimeError(
            f"{titles} both choose which of the same layers train, so that only what both choose would "
            "train, and often nothing. Keep one of them, or give them other units."
        )
    if one.units & other.units and one.title == other.title:
        raise RuntimeError(
            f"{titles} scale the rates of the same parameters, which would multiply. Keep one of them."
        )
    for first, second in ((one, other), (other, one)):
        if first.rest & second.units and second.freezes:
            raise RuntimeError(
                f"{first.title} freezes what is in none of its units for the whole run, and these are units "
                f"of {second.title}. Give {first.title} rest: train, or keep one of them."
            )
