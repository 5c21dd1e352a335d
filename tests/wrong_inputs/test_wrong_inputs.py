"""Every public callable refuses wrong values where they are given, in words that name the argument."""

import contextlib
import io
import traceback
import warnings
from pathlib import Path

import pytest

import lighter_freezers
from tests.wrong_inputs.accepted import ACCEPTED, NAMES, entry_for
from tests.wrong_inputs.calls import CALLS, MISSING, VALUES_OF_THE_PACKAGE, arguments_for
from tests.wrong_inputs.generator import KINDS, Row, arguments_of, table

PACKAGE = str(Path(lighter_freezers.__file__).parent)
REFUSALS = (TypeError, ValueError, RuntimeError, OSError)
# What only a whole value says: the wrong one was accepted before it.
LATER = (MISSING, "network must be a causal language model", "has no head")
TABLE = table()
BY_NAME = {name: [row for row in TABLE if row.name == name] for name in dict.fromkeys(r.name for r in TABLE)}


def outcome(row: Row) -> str:
    """`refused`, `accepted`, or what is wrong with the answer."""
    given = {**arguments_for(row.name), row.argument: row.value}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            getattr(lighter_freezers, row.name)(**given)
    except Exception as error:
        said, last = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
        is_named = row.argument in said or NAMES.get((row.name, row.argument), row.argument) in said
        if isinstance(error, REFUSALS) and is_named and last.startswith(PACKAGE):
            return "refused"
        if any(each in said for each in LATER):
            return "accepted"
        return f"{type(error).__name__}: {said[:200]}"
    return "accepted"


def faults(rows: list[Row]) -> list[str]:
    """What is answered wrongly: late, without the argument's name, or not at all without a reason."""
    found = []
    for row in rows:
        answer = outcome(row)
        if answer != "refused" and not (answer == "accepted" and entry_for(row)):
            found.append(f"{row}: {answer}")
    return found


def takes_long_or_is_not_ours(row: Row) -> bool:
    """So many rounds would run; Lightning says what is no loader, and the model what is no batch."""
    loaders, is_class = ("train_dataloaders", "val_dataloaders"), row.kind == "a class"
    is_left = row.kind == "huge" or row.argument in loaders or (row.argument == "progress" and is_class)
    return row.name == "plan" and is_left


@pytest.mark.wide
@pytest.mark.parametrize("name", BY_NAME)
def test_a_wrong_value_is_refused_by_name(name: str) -> None:
    """Every row, but for the few of `plan` that run long or are answered by others."""
    assert faults([row for row in BY_NAME[name] if not takes_long_or_is_not_ours(row)]) == []


CHEAP = [name for name in BY_NAME if name not in ("plan", "get_memory_savings_estimate", "compile_blocks")]


def test_a_sample_of_wrong_values_is_refused_by_name() -> None:
    """Each argument with one kind, another one for each."""
    rows = {}
    for index, row in enumerate(row for name in CHEAP for row in BY_NAME[name]):
        if (index * 7) % 11 == 0:
            rows.setdefault((row.name, row.argument), row)
    assert faults(list(rows.values())) == []


def test_every_argument_has_its_rows() -> None:
    """A new one gets them from its annotation; a new callable may need valid arguments in `calls.py`."""
    assert len(TABLE) >= 2500
    for name in lighter_freezers.__all__:
        if name in VALUES_OF_THE_PACKAGE:
            continue
        for argument, parameter in arguments_of(name).items():
            rows = [row for row in TABLE if (row.name, row.argument) == (name, argument)]
            assert len(rows) >= 8 or parameter.kind is parameter.VAR_KEYWORD, f"{name}: {argument}"
        found = arguments_of(name).items()
        needed = {key for key, each in found if each.default is each.empty and "VAR" not in each.kind.name}
        assert needed <= CALLS.get(name, {}).keys(), f"{name} needs valid {needed} in calls.py"


@pytest.mark.wide
def test_every_reason_is_needed() -> None:
    """A line of `accepted.py` that accepts no row would hide a fault of tomorrow; none covers everything."""
    idle = dict.fromkeys(ACCEPTED)
    for row in TABLE:
        entry = None if takes_long_or_is_not_ours(row) else entry_for(row)
        if entry in idle and outcome(row) == "accepted":
            del idle[entry]
    assert not idle
    assert ("*", "*") not in {entry[:2] for entry in ACCEPTED}
    assert len(KINDS) >= 20
