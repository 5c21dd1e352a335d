"""The ledger's record of each parameter, kept as long as the parameter exists. It changes no flags."""

import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from torch.nn import Parameter

from lighter_freezers.engine.terms import Terms

__all__ = [
    "Holder",
    "Record",
    "holders",
    "is_held",
    "is_left_over",
    "is_user_frozen",
    "known",
    "observed",
    "record_of",
    "records",
    "terms_of",
    "unlisted",
]


class Holder(Protocol):
    """A hold, as the records see it."""

    holder: str
    is_active: bool
    terms: Terms

    def replace(self, old: Parameter, new: Parameter) -> None:
        """Hold a successor from now on."""


class Record:
    """What the ledger records of one parameter."""

    __slots__ = ("__weakref__", "baseline", "count", "holds", "is_left", "parameter", "standing")

    def __init__(self, parameter: Parameter) -> None:
        self.parameter: Callable[[], Parameter | None] = observed(parameter)
        self.baseline = parameter.requires_grad
        self.count = 0  # number of holders now
        self.holds: dict[int, weakref.ref[Holder]] = {}  # by the id of the hold
        self.standing: set[str] = set()  # holders that came through `hold()`
        self.is_left = False  # frozen by us and left so when its last hold was abandoned


records: dict[int, Record] = {}


def _dropping(key: int) -> Callable[[object], None]:
    """The weak-reference callback that drops a record once its parameter is gone (its id may be reused)."""

    def forget(_: object) -> None:
        records.pop(key, None)

    return forget


def unlisted(key: int, records: Sequence[Record]) -> Callable[[object], None]:
    """The weak-reference callback that drops a hold from its records once it is gone without `abandon`."""

    def unlist(_: object) -> None:
        for record in records:
            record.holds.pop(key, None)

    return unlist


def observed(parameter: Parameter) -> Callable[[], Parameter | None]:
    """A weak reference to a parameter, which takes the record along when the parameter goes."""
    return weakref.ref(parameter, _dropping(id(parameter)))


def known(parameter: Parameter) -> Record | None:
    """The record of a parameter, if there is one."""
    record = records.get(id(parameter))
    return None if record is None or record.parameter() is not parameter else record


def record_of(parameter: Parameter) -> Record:
    """The record of a parameter, made if there is none."""
    record = known(parameter)
    if record is None:
        record = records[id(parameter)] = Record(parameter)
    return record


def holders(parameter: Parameter) -> tuple[str, ...]:
    """Who holds a parameter now, in alphabetical order; empty when it has no holder."""
    record = known(parameter)
    if record is None:
        return ()
    active = [
        hold.holder
        for hold in (reference() for reference in record.holds.values())
        if hold and hold.is_active
    ]
    return tuple(sorted({*active, *record.standing}))


def terms_of(parameter: Parameter) -> list[Terms]:
    """The terms of all holds on a parameter now."""
    record = known(parameter)
    holds = [] if record is None else [reference() for reference in record.holds.values()]
    return [hold.terms for hold in holds if hold is not None and hold.is_active]


def is_held(parameter: Parameter) -> bool:
    """Whether a parameter has a holder now."""
    record = known(parameter)
    return record is not None and record.count > 0


def is_user_frozen(parameter: Parameter) -> bool:
    """Whether a parameter would stay frozen if every holder released it."""
    record = known(parameter)
    if record is None:
        return not parameter.requires_grad
    if record.count:
        return not record.baseline
    return not parameter.requires_grad and not record.is_left


def is_left_over(parameter: Parameter) -> bool:
    """Whether an earlier run ended while it held a parameter, which nothing holds now."""
    record = known(parameter)
    return record is not None and record.is_left and record.baseline and not record.count
