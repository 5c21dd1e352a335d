"""Plain values from YAML: what passes, and what the errors say."""

from pathlib import Path
from typing import Any

import pytest

from lighter_freezers import (
    CausalLMModule,
    GradientNormMonitor,
    GradualUnfreezing,
    LayerOperations,
    PlotsAtEnd,
    PrefixCache,
    arguments,
    evaluate_e2e,
)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (
            arguments.number,
            "5e-5",
            r"must be a number. Got '5e-5' \(str\). YAML reads 5e-5 as a string: write 5.0e-5",
        ),
        (arguments.number, True, "must be a number"),
        (arguments.count, "10", "must be a whole number. Got '10' .* Remove the quotes"),
        (arguments.count, 10.0, "must be a whole number"),
        (arguments.count, True, "must be a whole number"),
        (arguments.flag, "false", "must be true or false. Got 'false'"),
        (arguments.step_windows, 5, r"list of \[first, end\) pairs"),
        (arguments.step_windows, [5], r"x\[0\] must be a pair"),
    ],
)
def test_a_wrong_type_is_named(check: Any, value: object, message: str) -> None:
    """A TypeError says which argument, what was given and what to write."""
    with pytest.raises(TypeError, match=message):
        check("x", value)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (arguments.count, -1, "x counts from 0. Got -1"),
        (arguments.count, 2**63, "x is at most 9223372036854775807. Got 9223372036854775808"),
        (arguments.positive, 0, "above 0"),
        (arguments.positive, float("inf"), "finite"),
        (arguments.fraction, 1.5, "x must be between 0 and 1. Got 1.5"),
        (arguments.fraction, -0.1, "between 0 and 1"),
        (arguments.step_windows, [[5, 5]], "must begin before it ends"),
        (arguments.step_windows, [[0, 5], [4, 9]], r"\[0, 5\] and \[4, 9\] overlap"),
    ],
)
def test_a_value_out_of_range_is_named(check: Any, value: object, message: str) -> None:
    """A ValueError says the rule and the value."""
    with pytest.raises(ValueError, match=message):
        check("x", value)


def test_a_choice_lists_what_there_is() -> None:
    """A misspelt word comes back with the known ones."""
    with pytest.raises(ValueError, match="frozen_norms must be one of eval, stats, train. Got 'evla'"):
        arguments.choice("frozen_norms", "evla", ("eval", "stats", "train"))


def test_windows_are_sorted() -> None:
    """Windows may be written in any order."""
    assert arguments.step_windows("windows", [[20, 25], [0, 5]]) == ((0, 5), (20, 25))


@pytest.mark.parametrize("value", [2**63, -(2**63)])
def test_a_whole_number_of_a_checked_call_fits_into_64_bits(value: int) -> None:
    """Whatever the function would make of it."""

    @arguments.checked
    def call(n: int) -> int:
        return n

    assert call(value - 1 if value > 0 else value + 1)
    with pytest.raises(ValueError, match="n is at most 9223372036854775807. Got"):
        call(value)


def test_an_unknown_argument_is_named_with_its_class() -> None:
    """As Python does where no types are checked."""
    with pytest.raises(
        TypeError, match=r"GradientNormMonitor.__init__\(\) got .* argument 'log_every_n_steps'"
    ):
        GradientNormMonitor(log_every_n_steps=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: GradientNormMonitor(dirpath=path).dirpath, None),
        (PlotsAtEnd, None),
        (PrefixCache, None),
        (lambda path: GradualUnfreezing(schedule=path), "schedule: there is no file"),
        (lambda path: LayerOperations(path / "a.yaml"), "operations: there is no file"),
        (lambda path: CausalLMModule(model=path), "No model at"),
        (lambda path: evaluate_e2e(path, source=path, output_dir=path), "No model at"),
    ],
    ids=["norms", "plots", "cache", "schedule", "operations", "model", "evaluate"],
)
def test_a_path_of_pathlib_is_a_path(make: Any, told: str | None, tmp_path: Path) -> None:
    """Wherever a text is: taken, or looked up."""
    if told is None:
        make(tmp_path / "none")
        return
    with pytest.raises((ValueError, OSError), match=told):
        make(tmp_path / "none")
