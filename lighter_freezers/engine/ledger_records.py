"""What the ledger knows of each parameter, for as long as the parameter lives. It changes no flag."""

import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from torch.nn import Parameter

__all__ = ["Holder", "Record", "known", "observed", "record_of", "records", "unlisted"]


class Holder(Protocol):
    """A hold, as the records see it."""

    holder: str
    is_active: bool

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
