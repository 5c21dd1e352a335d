"""Schedules and metric conditions: pure functions of what they are shown."""

from dataclasses import replace
from typing import Any

import pytest

from lighter_freezers.engine.triggers import (
    History,
    LossOrWait,
    Moment,
    Schedule,
    parse_metric_trigger,
    parse_plateau,
)


@pytest.mark.parametrize(
    ("schedule", "active"),
    [
        (Schedule(), [0, 1, 2, 3, 4, 5]),
        (Schedule(until_step=3), [0, 1, 2]),
        (Schedule(until_epoch=2), [0, 1, 2, 3]),
        (Schedule(until_step=3, until_epoch=2), [0, 1, 2]),
        (Schedule(until_step=5, until_epoch=1), [0, 1]),
        (Schedule(from_step=2), [2, 3, 4, 5]),
        (Schedule(from_step=3, from_epoch=1), [2, 3, 4, 5]),
        (Schedule(from_step=1, until_step=4), [1, 2, 3]),
        (Schedule(windows=((0, 1), (3, 5))), [0, 3, 4]),
        (Schedule(until_step=0), []),
    ],
)
def test_a_schedule_is_a_function_of_step_and_epoch(schedule: Schedule, active: list[int]) -> None:
    """Six steps, two to an epoch: bounds are half-open, and the first of two bounds counts."""
    assert active == [step for step in range(6) if schedule.is_active(Moment(step, step // 2))]


def test_a_schedule_knows_its_next_step() -> None:
    """What the engine counts down to."""
    schedule = Schedule(windows=((0, 2), (4, 6)))

    assert [schedule.next_step(Moment(step, 0)) for step in (0, 1, 2, 4, 6)] == [2, 2, 4, 6, None]


def observe_all(config: dict[str, Any], values: list[float]) -> list[bool]:
    trigger, history, fired = parse_metric_trigger("until_metric", config), History(), []
    for value in values:
        history = trigger.observe(value, history)
        fired.append(history.has_fired)
    return fired


def test_below_is_strict_latched_and_deaf_to_nan() -> None:
    """2.5 is not below 2.5; a later rise does not undo it."""
    fired = observe_all({"monitor": "val/loss", "below": 2.5}, [3.0, float("nan"), 2.5, 2.4, 9.0])

    assert fired == [False, False, False, True, True]


def test_above_is_for_metrics_that_grow() -> None:
    """Accuracy above 0.9."""
    assert observe_all({"monitor": "val/acc", "above": 0.9}, [0.5, 0.9, 0.91]) == [False, False, True]


def test_a_plateau_counts_checks_without_progress() -> None:
    """Progress smaller than min_delta is none, and a real one starts the count again."""
    config = {"monitor": "val/loss", "plateau": {"patience": 2, "min_delta": 0.1}}

    assert observe_all(config, [3.0, 2.95, 2.5, 2.45, 2.41]) == [False, False, False, False, True]


def test_a_plateau_of_a_growing_metric() -> None:
    """`mode: max`: higher is better."""
    config = {"monitor": "val/acc", "plateau": {"patience": 2, "mode": "max"}}

    assert observe_all(config, [0.1, 0.5, 0.4, 0.5]) == [False, False, False, True]


def test_nan_is_no_progress() -> None:
    """A run that diverged is on a plateau."""
    nan = float("nan")

    assert observe_all({"monitor": "m", "plateau": {"patience": 2}}, [nan, nan]) == [False, True]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("val/loss", TypeError, "must be a mapping such as"),
        ({"below": 1.0}, ValueError, "needs 'monitor'"),
        ({"monitor": "m"}, ValueError, "exactly one of below, above, plateau"),
        ({"monitor": "m", "below": 1, "above": 2}, ValueError, "exactly one of"),
        ({"monitor": "m", "below": "5e-5"}, TypeError, r"write 5\.0e-5"),
        ({"monitor": "m", "belwo": 1.0}, ValueError, "has no key 'belwo'. Keys: monitor, below"),
        *(
            ({"monitor": "m", kind: float(value)}, ValueError, f"no value is {kind} {value}")
            for kind, value in (("below", "nan"), ("below", "-inf"), ("above", "nan"), ("above", "inf"))
        ),
        *(
            (
                {"monitor": "m", "plateau": {"patience": 1, "min_delta": float(delta)}},
                ValueError,
                "and finite",
            )
            for delta in ("nan", "inf", "-inf")
        ),
        ({"monitor": "m", "plateau": 3}, TypeError, "until_metric.plateau must be a mapping"),
        ({"monitor": "m", "plateau": {}}, ValueError, "needs 'patience'"),
        ({"monitor": "m", "plateau": {"patience": 0}}, ValueError, "needs 'patience'"),
        ({"monitor": "m", "plateau": {"patience": 1.5}}, TypeError, "patience must be a whole number"),
        ({"monitor": "m", "plateau": {"patience": 1, "min_delta": -1.0}}, ValueError, "at least 0"),
        (
            {"monitor": "m", "plateau": {"patience": 1, "mode": "up"}},
            ValueError,
            "'min' .* or 'max'. Got 'up'",
        ),
    ],
)
def test_a_bad_condition_is_refused_with_the_way_out(
    config: Any, error: type[Exception], message: str
) -> None:
    """What YAML can get wrong is found when the config is read."""
    with pytest.raises(error, match=message):
        parse_metric_trigger("until_metric", config)


def test_a_plateau_of_a_higher_number_counts_anew_after_each() -> None:
    """Progress in between takes back the checks since the last plateau, and no plateau."""
    values = [1.0, 1.0, 1.0, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4]
    fired = dict.fromkeys((1, 2, 3), 0)
    for number in fired:
        trigger = replace(parse_plateau("plateau", {"monitor": "val/loss", "patience": 2}), number=number)
        history = History()
        for value in values:
            history = trigger.observe(value, history)
            fired[number] += not history.has_fired

    assert fired == {1: 2, 2: 7, 3: 9}


def test_the_last_end_is_reached_at_its_step() -> None:
    """From then on warm-ups count; epochs do not tell the step."""
    windows = Schedule(windows=((0, 2), (4, 6)))
    assert [windows.last_end(Moment(step, 0)) for step in (1, 2, 5, 6, 9)] == [None, 2, 2, 6, 6]
    assert [Schedule(until_step=5).last_end(Moment(step, 0)) for step in (4, 5)] == [None, 5]
    assert Schedule(until_step=5, until_epoch=1).last_end(Moment(9, 3)) is None


def test_the_last_step_of_a_run_still_counts() -> None:
    """A window that begins in it is not late, and a wait is over at its number of steps."""
    window = Schedule(windows=((5, 6),))
    assert window.beyond(Moment(5, 0)) == []
    assert window.beyond(Moment(4, 0)) == ["[5, 6)"]
    wait = LossOrWait("loss", None, 3)
    assert [wait.reason(None, steps) for steps in (2, 3)] == [None, "waited 3 steps"]
