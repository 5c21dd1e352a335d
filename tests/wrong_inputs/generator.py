"""The table of wrong inputs: every public callable, every argument, every kind of value it does not take.

Made from `inspect.signature` and the annotations, so a new argument gets its rows by itself. Print the number
of rows of each callable with `python -m tests.wrong_inputs.generator`.
"""

import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lighter_freezers

KINDS: dict[str, Any] = {  # kind -> value; what an annotation allows gives no row, what is in range neither
    "text for a number": "5e-5",
    "a number for text": 3,
    "a fraction for a count": 1.5,
    "true for a number": True,
    "a list": ["x"],
    "a list of lists": [[]],
    "a list of numbers": [1.5],
    "a list of objects": [object()],
    "an empty list": [],
    "a list of empty texts": [""],
    "a mapping": {"nonsens": 1},
    "a mapping of numbers": {3: 4},
    "an empty mapping": {},
    "an object": object(),
    "a class": int,
    "bytes": b"x",
    "a set": {1},
    "a complex number": 1j,
    "nothing": None,
    "empty text": "",
    "a misspelt word": "nonsens",
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "negative": -1,
    "zero": 0,
    "huge": 10**30,
}
_NUMBERS = {"NaN", "infinity", "minus infinity"}
_RANGES = {"negative", "zero", "huge"}
_COUNTS = _RANGES | {"a number for text"}
_TEXTS = {"text for a number", "empty text", "a misspelt word"}
_LISTS = {
    "a list",
    "a list of lists",
    "a list of numbers",
    "a list of objects",
    "an empty list",
    "a list of empty texts",
}
_MAPPINGS = {"a mapping", "a mapping of numbers", "an empty mapping"}


@dataclass(frozen=True)
class Row:
    """One call with one wrong value."""

    name: str  # of the public callable
    argument: str
    kind: str

    @property
    def value(self) -> Any:
        return KINDS[self.kind]

    def __str__(self) -> str:
        return f"{self.name}({self.argument}={self.kind})"


def arguments_of(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of a public callable; those of `**said` are `blocks`, `head` and `embeddings`."""
    found = dict(inspect.signature(getattr(lighter_freezers, name)).parameters)
    if found.pop("said", None):
        model = inspect.signature(lighter_freezers.anatomy_of).parameters
        found |= {key: model[key] for key in ("blocks", "head", "embeddings")}
    found.pop("self", None)
    return found


def rows_of(name: str, argument: str, parameter: inspect.Parameter) -> Iterator[Row]:
    """The rows of one argument: the kinds that its annotation does not allow as they are."""
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return
    right = _right(str(parameter.annotation), parameter.default)
    yield from (Row(name, argument, kind) for kind in KINDS if kind not in right)


def table() -> list[Row]:
    """All rows."""
    from tests.wrong_inputs.calls import VALUES_OF_THE_PACKAGE

    names = [name for name in lighter_freezers.__all__ if name not in VALUES_OF_THE_PACKAGE]
    pairs = [(name, *pair) for name in names for pair in arguments_of(name).items()]
    return [row for pair in pairs for row in rows_of(*pair)]


def _right(annotation: str, default: object) -> set[str]:
    """The kinds that are right by their type and cannot be out of range."""
    text = re.sub(r"Literal\[[^]]*\]", "Literal", annotation)
    right: set[str] = set()
    if "None" in text or default is None:
        right.add("nothing")
    if "Literal" not in text and re.search(r"\bstr\b", re.sub(r"(Sequence|Mapping)\[.*", "", text)):
        right |= {
            "a misspelt word",
            "text for a number",
        }  # a name of the user's
    if re.search(r"\bbool\b", text):
        right.add("true for a number")
    number = re.sub(r"(Sequence|Mapping)\[[^|]*", "", text)
    if re.search(r"\bint\b|\bfloat\b", number):
        right.add("a number for text")
    if re.search(r"\bfloat\b", number):
        right |= {"a fraction for a count"}
    if "Sequence[str" in text or "Sequence[collections.abc.Sequence" in text or "str | int]" in text:
        right.add("a list")
    if "Sequence[float" in text or "Sequence[int" in text:
        right.add("a list of numbers")
    return right


def main() -> None:
    """Print how many rows each callable has, and how many arguments."""
    rows = table()
    for name in dict.fromkeys(row.name for row in rows):
        mine = [row for row in rows if row.name == name]
        print(f"{name}: {len(mine)} rows for {len({row.argument for row in mine})} arguments")
    print(f"{len(rows)} rows in all")


if __name__ == "__main__":
    main()
