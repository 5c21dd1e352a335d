"""Reductions and warm-up by hand, as numbers and in an optimizer's groups."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers.gpt.lr_schedules import AdaptiveScheduler

GUIDE: dict[str, Any] = {"initial_lr": 1e-4, "patience": 3, "factor": 0.5, "min_lr": 1e-6}


def optimizer_with(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(2))], "lr": rate} for rate in rates])


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_the_example_of_the_guide() -> None:
    """The third bad check in a row halves the rate."""
    scheduler = AdaptiveScheduler(**GUIDE)

    assert [scheduler.step(loss) for loss in (1.0, 1.1, 1.1, 1.1)] == [False, False, False, True]
    assert scheduler.current_lr == 5e-5


def test_a_good_check_forgives_the_bad_ones() -> None:
    """Good is strictly below all before; the same again is bad, and so is what is not a number."""
    scheduler = AdaptiveScheduler(**GUIDE)
    losses = [1.0, 1.0, math.nan, 0.9, 0.9, 0.95, torch.tensor(0.95)]

    assert [scheduler.step(loss) for loss in losses] == [False] * 6 + [True]
    assert [scheduler.step(0.9) for _ in range(3)] == [False, False, True]
    assert scheduler.current_lr == 2.5e-5


def test_the_rate_has_a_floor() -> None:
    """At the minimum nothing is lowered, and `step` returns False."""
    scheduler = AdaptiveScheduler(initial_lr=1.0, patience=1, factor=0.5, min_lr=0.3)

    assert [scheduler.step(1.0) for _ in range(5)] == [False, True, True, False, False]
    assert scheduler.current_lr == 0.3


def test_a_rate_below_the_floor_stays() -> None:
    """It is not raised."""
    scheduler = AdaptiveScheduler(initial_lr=0.1, patience=1, min_lr=0.3)

    assert [scheduler.step(1.0) for _ in range(3)] == [False] * 3
    assert scheduler.current_lr == 0.1


def test_the_warm_up_multiplies_the_reduced_rate() -> None:
    """(i + 1) / (warmup_iters + 1)."""
    scheduler = AdaptiveScheduler(initial_lr=1.0, patience=1, warmup_iters=9)
    assert [scheduler.get_lr(i) for i in (0, 4, 9, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    scheduler.step(1.0)
    scheduler.step(1.0)

    assert [scheduler.get_lr(i) for i in (0, 4, 9, 99)] == pytest.approx([0.05, 0.25, 0.5, 0.5])


@pytest.mark.parametrize(("initial_lr", "full"), [(None, [0.1, 0.4]), (0.2, [0.2, 0.2])])
def test_it_drives_the_groups_of_an_optimizer(initial_lr: float | None, full: list[float]) -> None:
    """Warm-up by the optimizer's own steps, reductions by checks, also in the middle of the warm-up."""
    optimizer = optimizer_with(0.1, 0.4)
    scheduler = AdaptiveScheduler(optimizer, initial_lr=initial_lr, patience=1, min_lr=0.09, warmup_iters=3)
    seen = [rates_of(optimizer)]
    lowered = []
    for step in range(1, 8):
        optimizer.step()
        if step in (1, 2, 5):
            lowered.append(scheduler.step(1.0))
        assert scheduler.get_last_lr() == rates_of(optimizer)
        seen.append(rates_of(optimizer))
    once, twice = ([max(0.5**n * lr, 0.09) for lr in full] for n in (1, 2))
    expected = [full, full, once, once, once, twice, twice, twice]
    shape = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]

    assert seen == [pytest.approx([s * lr for lr in row]) for s, row in zip(shape, expected, strict=True)]
    assert lowered == [False, True, True]
    assert scheduler.current_lr == pytest.approx(max(twice))


def test_a_rate_in_a_tensor_is_written_in_place() -> None:
    """As a capturable optimizer needs it."""
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(2))], "lr": rate}])
    AdaptiveScheduler(optimizer, warmup_iters=1)

    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.05)


def test_it_saves_its_progress_only() -> None:
    """Plain values that `torch.load` reads safely; a new one goes on with its own arguments."""
    optimizer = optimizer_with(0.1)
    scheduler = AdaptiveScheduler(optimizer, initial_lr=0.1, patience=2, warmup_iters=9)
    for _ in range(4):
        optimizer.step()
    for _ in range(4):
        scheduler.step(1.0)
    state = scheduler.state_dict()
    resumed = AdaptiveScheduler(optimizer_with(0.1), initial_lr=0.4, patience=2, warmup_iters=9)
    resumed.load_state_dict(state)

    assert resumed.get_lr() == pytest.approx([0.4 * 0.5 * 0.5])
    assert resumed.step(1.0)  # the second bad check after the reduction
    assert all(isinstance(value, (int, float, list)) for value in state.values())


def test_torch_and_lightning_take_it_for_one_that_wants_a_metric() -> None:
    """So that the Trainer calls `step` with the metric that is monitored."""
    scheduler = AdaptiveScheduler(optimizer_with(0.1))

    assert isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"initial_lr": None}, ValueError, "There is no rate: give initial_lr"),
        ({"initial_lr": "1e-4"}, TypeError, "initial_lr must be a number"),
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"factor": 1.0}, ValueError, "factor must be below 1"),
        ({"min_lr": 0}, ValueError, "min_lr must be above 0"),
        ({"warmup_iters": None}, TypeError, "warmup_iters must be a whole number"),
        ({"optimizer": "adam"}, TypeError, "first argument of AdaptiveScheduler is a torch optimizer"),
    ],
)
def test_a_bad_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Before any training."""
    with pytest.raises(error, match=message):
        AdaptiveScheduler(**{**GUIDE, **change})
