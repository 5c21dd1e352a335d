"""Checks of the plain values that YAML passes to callbacks: types, ranges, choices."""

import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, ParamSpec, TypeVar, Union, get_args, get_origin

__all__ = [
    "Share",
    "at_least",
    "bound",
    "checked",
    "choice",
    "count",
    "file_content",
    "flag",
    "fraction",
    "index_or_name",
    "number",
    "plain",
    "positive",
    "step_windows",
]

Choice = TypeVar("Choice", bound=str)
Given = ParamSpec("Given")
Result = TypeVar("Result")
_HEAVY = (("torch", "nn"), ("peft", "LoraConfig"))  # nothing is of a kind that has not been imported
_BEYOND_ALL_STEPS = 2**40
_MOST = 2**63 - 1  # the largest whole number that torch and Python's own counters take


class Share(int):
    """A step or an epoch as a share of the run, such as `30%`.

    As a number it is beyond the end of any run, and the larger, the larger the share: nothing is reached
    before `run_shares.py` has put the step or epoch in its place, once the length of the run is known.

    Args:
        percent: From 0 to 100.
        unit: What is counted.
    """

    percent: float
    unit: Literal["step", "epoch"]

    def __new__(cls, percent: float, unit: Literal["step", "epoch"]) -> "Share":  # noqa: D102 # as above
        share = super().__new__(cls, _BEYOND_ALL_STEPS + round(percent * 10**6))
        share.percent, share.unit = percent, unit
        return share

    def __getnewargs__(self) -> tuple[float, Literal["step", "epoch"]]:  # type: ignore[override] # for copies
        return self.percent, self.unit

    def times(self, number: int) -> "Share":
        """So many times this share, which may be more than the run."""
        return Share(self.percent * number, self.unit)

    def __repr__(self) -> str:
        return f"{self.percent:g}%"


def plain(value: object) -> object:
    """Every list (`ListConfig`, a tuple) or mapping (`UserDict`) as lists and dicts; others stay."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(each) for each in value]
    return value


def number(argument: str, value: object) -> float:
    """Check a real number from YAML.

    Raises:
        TypeError: It is something else, such as the string that YAML makes of `5e-5`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = " YAML reads 5e-5 as a string: write 5.0e-5." if isinstance(value, str) else ""
        raise TypeError(f"{argument} must be a number. Got {value!r} ({type(value).__name__}).{hint}")
    return float(value)


def count(argument: str, value: object) -> int | None:
    """Check a count of steps, epochs or checks from YAML; None stays None.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is negative, or larger than any count.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        hint = " Remove the quotes." if isinstance(value, str) else ""
        raise TypeError(f"{argument} must be a whole number. Got {value!r} ({type(value).__name__}).{hint}")
    if not 0 <= value <= _MOST:
        limit = "counts from 0" if value < 0 else f"is at most {_MOST}"
        raise ValueError(f"{argument} {limit}. Got {value}.")
    return value


def bound(argument: str, value: object, unit: Literal["step", "epoch"] = "step") -> int | None:
    """Check a step or epoch of the run from YAML: a count, or a share of the run such as `30%`.

    Raises:
        TypeError: It is neither.
        ValueError: It is negative, or more than the whole run.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    if match is None and not (isinstance(value, str) and "%" in value):
        return count(argument, value)
    percent = float(match[1]) if match else -1.0
    if not 0 <= percent <= 100:
        raise ValueError(f"{argument}: a share of the run is between 0% and 100%, as 30%. Got {value!r}.")
    return Share(percent, unit) if percent else 0


def index_or_name(argument: str, value: object) -> int | str | None:
    """Check what names one of several things: a number from 0, or a name; None stays None.

    Raises:
        TypeError: It is something else.
        ValueError: It is negative, or empty.
    """
    if value == "":
        raise ValueError(f"{argument} must not be empty.")
    return value if isinstance(value, str) else count(argument, value)


def at_least(argument: str, value: object, minimum: int = 0) -> int:
    """Check a whole number from YAML against a minimum.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is too small.
    """
    if (checked := count(argument, value)) is None:
        raise TypeError(f"{argument} must be a whole number. Got None.")
    if checked < minimum:
        raise ValueError(f"{argument} must be at least {minimum}. Got {value}.")
    return checked


def choice(argument: str, value: object, choices: Sequence[Choice]) -> Choice:
    """Check that a word is one of a few.

    Raises:
        ValueError: It is not.
    """
    for known in choices:
        if value == known:
            return known
    raise ValueError(f"{argument} must be one of {', '.join(choices)}. Got {value!r}.")


def step_windows(argument: str, value: object) -> tuple[tuple[int, int], ...]:
    """Check windows of optimizer steps, `[[0, 500], [2000, 2500]]`; None means no windows.

    Raises:
        TypeError: It is not a list of pairs of whole numbers.
        ValueError: A window is empty or two overlap.
    """
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise TypeError(f"{argument} must be a list of [first, end) pairs such as [[0, 500]]. Got {value!r}.")
    windows = sorted(_window(f"{argument}[{index}]", pair) for index, pair in enumerate(value))
    for (start, end), (next_start, next_end) in zip(windows, windows[1:], strict=False):
        if next_start < end:
            raise ValueError(
                f"{argument}: [{start}, {end}] and [{next_start}, {next_end}] overlap. Join them."
            )
    return tuple(windows)


def _window(argument: str, pair: object) -> tuple[int, int]:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"{argument} must be a pair [first step, end step). Got {pair!r}.")
    start, end = bound(f"{argument}[0]", pair[0]), bound(f"{argument}[1]", pair[1])
    if start is None or end is None or start >= end:
        raise ValueError(f"{argument} must begin before it ends. Got {list(pair)}.")
    return start, end


def positive(argument: str, value: object) -> float:
    """Check a finite number above zero.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not above zero, or not finite.
    """
    checked = number(argument, value)
    if not 0 < checked < math.inf:
        raise ValueError(f"{argument} must be above 0 and finite. Got {value}.")
    return checked


def flag(argument: str, value: object) -> bool:
    """Check a truth value.

    Raises:
        TypeError: It is something else, such as the string 'false'.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be true or false. Got {value!r} ({type(value).__name__}).")
    return value


def fraction(argument: str, value: object) -> float:
    """Check a number from 0 to 1, both included.

    Raises:
        TypeError: It is not a number.
        ValueError: It is outside.
    """
    checked = number(argument, value)
    if not 0 <= checked <= 1:
        raise ValueError(f"{argument} must be between 0 and 1. Got {value}.")
    return checked


def file_content(argument: str, path: Path) -> object:
    """What a user's YAML or JSON file holds, with or without a byte order mark.

    Raises:
        ValueError: There is no such file, or it is neither YAML nor JSON.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"{argument}: there is no file '{path}'. Give its path from '{Path.cwd()}'.")
    kind, read = ("JSON", json.loads) if path.suffix == ".json" else ("YAML", yaml.safe_load)
    try:
        return read(path.read_text(encoding="utf-8-sig"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{argument}: '{path}' is not {kind}: {error}. Correct the file.") from error


def checked(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Check the types of all arguments against the annotations before the function runs.

    Lists and mappings of config libraries reach the function as plain ones. What only type checkers can know
    (protocols, names imported for them alone) is left to the function.

    Raises:
        TypeError: An argument has the wrong type; the message names it.
        ValueError: A word is none of a `Literal`, or a text is empty.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*given: Given.args, **named: Given.kwargs) -> Result:
        try:
            bound = signature.bind(*given, **named)
        except TypeError:
            return function(*given, **named)  # raises Python's own message, which names the function
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            is_own = name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
            if is_own and value is not parameter.default:
                wanted = _resolved(parameter.annotation, function)
                _check(name, value, wanted)
                if any(get_origin(each) in (Sequence, Mapping) for each in _members(wanted)):
                    bound.arguments[name] = plain(value)
        return function(*bound.args, **bound.kwargs)

    return call


def _resolved(annotation: object, function: Callable[..., object]) -> object:
    if not isinstance(annotation, str):
        return annotation
    known = {name: getattr(sys.modules.get(home), name, NoneType) for home, name in _HEAVY}
    try:
        return eval(annotation, vars(sys.modules[function.__module__]), known)  # the package's own
    except (AttributeError, NameError):
        return object


def _check(argument: str, value: object, wanted: object) -> None:
    if _fits(value, wanted):
        texts = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else ()
        if any(isinstance(each, str) and not each for each in texts):
            raise ValueError(f"{argument} must not be empty. Got {value!r}.")
        if isinstance(value, int) and int in _members(wanted) and abs(value) > _MOST:
            raise ValueError(f"{argument} is at most {_MOST}. Got {value}.")
        return
    members = [each for each in _members(wanted) if each is not NoneType]
    only = members[0] if len(members) == 1 else None
    if only is int:
        count(argument, value)
    if only is float:
        number(argument, value)
    if only is bool:
        flag(argument, value)
    if only is not None and get_origin(only) is Literal:
        choice(argument, value, get_args(only))
    kinds = " or ".join(dict.fromkeys(map(_words, members)))
    is_word = isinstance(value, str) and any(get_origin(each) is Literal for each in members)
    error = ValueError if is_word else TypeError
    raise error(f"{argument} must be {kinds}. Got {value!r} ({type(value).__name__}).")


def _members(wanted: object) -> Sequence[object]:
    return get_args(wanted) if get_origin(wanted) in (Union, UnionType) else [wanted]


def _fits(value: object, wanted: object) -> bool:
    return any(_fits_one(value, each) for each in _members(wanted))


def _fits_one(value: object, wanted: object) -> bool:
    if isinstance(wanted, TypeVar):
        wanted = wanted.__bound__ or object
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if wanted in (int, float):
        return isinstance(value, (int, float) if wanted is float else int) and not isinstance(value, bool)
    if origin in (Sequence, Iterable):
        if not isinstance(value, origin) or isinstance(value, (str, bytes, set, Mapping)):
            return False
        is_plain = isinstance(value, Sequence) and (
            parts[0] in (str, int, float) or getattr(parts[0], "__name__", "") == "Optimizer"
        )  # others say more themselves
        return not is_plain or all(_fits(each, parts[0]) for each in value)
    kind = origin or wanted
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol that only type checkers can compare
        return True


def _words(wanted: object) -> str:
    origin = get_origin(wanted)
    if origin is Literal:
        return f"one of {', '.join(get_args(wanted))}"
    if origin in (Sequence, Iterable):
        inner = {str: "of texts", int: "of whole numbers"}.get((*get_args(wanted), object)[0], "")
        return f"a list {inner}".rstrip()
    words: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false"}
    words |= {str: "a text", Mapping: "a mapping"}
    return words.get(origin or wanted, f"a {getattr(origin or wanted, '__name__', wanted)}")
