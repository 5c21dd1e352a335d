"""Up, level and down by hand, as numbers and in an optimizer's groups."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers.gpt.lr_schedules import WarmupOnlyScheduler


def optimizer_with(*rates: float, as_tensor: bool = False) -> torch.optim.Optimizer:
    groups = [
        {"params": [nn.Parameter(torch.zeros(2))], "lr": torch.tensor(r) if as_tensor else r} for r in rates
    ]
    return torch.optim.AdamW(groups, capturable=as_tensor) if as_tensor else torch.optim.SGD(groups)


def test_it_rises_and_stays() -> None:
    """(i + 1) / (warmup_iters + 1), then the full rate to the end."""
    scheduler = WarmupOnlyScheduler(learning_rate=1e-3, warmup_iters=9)

    assert [scheduler.get_lr(i) for i in (0, 4, 8)] == pytest.approx([1e-4, 5e-4, 9e-4])
    assert [scheduler.get_lr(i) for i in (9, 10, 10**6)] == [1e-3] * 3


def test_the_decay_is_a_straight_line_that_arrives() -> None:
    """Equal steps from the end of the hold to `max_iters`."""
    scheduler = WarmupOnlyScheduler(
        learning_rate=1.0, warmup_iters=10, hold_iters=10, max_iters=60, min_lr_ratio=0.2
    )
    rates = [scheduler.get_lr(i) for i in range(20, 61)]
    steps = [before - after for before, after in zip(rates, rates[1:], strict=False)]

    assert rates[0] == 1.0
    assert steps == pytest.approx([0.8 / 40] * 40)
    assert scheduler.get_lr(60) == scheduler.get_lr(1000) == pytest.approx(0.2)


def test_the_hold_is_as_long_as_the_warm_up_unless_told() -> None:
    """And 0 is 0."""
    options: dict[str, Any] = {"learning_rate": 1.0, "warmup_iters": 10, "max_iters": 30, "min_lr_ratio": 0.0}

    assert WarmupOnlyScheduler(**options).get_lr(25) == pytest.approx(0.5)
    assert WarmupOnlyScheduler(**options, hold_iters=0).get_lr(25) == pytest.approx(0.25)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_each_group_keeps_its_own_rate_unless_one_is_given(as_tensor: bool) -> None:
    """The shape multiplies 0.1 and 0.4; or the rate of both is 0.2."""
    for learning_rate, full in ((None, [0.1, 0.4]), (0.2, [0.2, 0.2])):
        optimizer = optimizer_with(0.1, 0.4, as_tensor=as_tensor)
        scheduler = WarmupOnlyScheduler(optimizer, learning_rate=learning_rate, warmup_iters=3, max_iters=8)
        seen = []
        for _ in range(9):
            seen.append([float(group["lr"]) for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        shape = [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.55, 0.1]

        assert seen == [pytest.approx([s * lr for lr in full]) for s in shape]
        assert scheduler.get_lr(3) == pytest.approx(max(full))


def test_it_saves_its_progress() -> None:
    """A new one goes on where the old one was."""
    seen = []
    state: dict[str, Any] = {}
    for _ in range(2):
        optimizer = optimizer_with(0.1)
        scheduler = WarmupOnlyScheduler(optimizer, warmup_iters=9)
        if state:
            scheduler.load_state_dict(state)
        for _ in range(3):
            optimizer.step()
            scheduler.step()
            seen.append(optimizer.param_groups[0]["lr"])
        state = scheduler.state_dict()

    assert seen == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06, 0.07])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"learning_rate": None}, ValueError, "There is no rate: give learning_rate"),
        ({"learning_rate": "1e-3"}, TypeError, "learning_rate must be a number"),
        ({"hold_iters": 5}, ValueError, "hold_iters=5 sets when the decay begins, but without max_iters"),
        ({"hold_iters": 5, "max_iters": 15}, ValueError, "begin to decay at iteration 15, but max_iters=15"),
        ({"warmup_iters": -1}, ValueError, "warmup_iters counts from 0"),
        ({"min_lr_ratio": "0.1"}, TypeError, "min_lr_ratio must be a number"),
    ],
)
def test_a_bad_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Before any training."""
    with pytest.raises(error, match=message):
        WarmupOnlyScheduler(**{"learning_rate": 1e-3, "warmup_iters": 10, **change})
