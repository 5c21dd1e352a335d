"""The rate in force after a thaw, by hand arithmetic."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lighter_freezers.engine.effects.learning_rates import LearningRateRequest, ThawedGroup
from lighter_freezers.engine.triggers import Moment


@dataclass
class Freezing:
    learning_rate: LearningRateRequest | None
    released_at: int | None

    def released_by(self, moment: Moment) -> int | None:
        return self.released_at


def rate(freezers: list[Freezing], step: int, scheduled: float = 0.1) -> float:
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": scheduled}], lr=scheduled)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 7.0})
    ThawedGroup(optimizer, 1, 0, freezers).set_learning_rate(Moment(step, 0))
    return float(optimizer.param_groups[1]["lr"])


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (LearningRateRequest(absolute=1e-4), [1e-4] * 4),
        (LearningRateRequest(factor=0.5), [0.05] * 4),
        (LearningRateRequest(warmup_steps=4), [0.025, 0.05, 0.075, 0.1]),
        (LearningRateRequest(absolute=1e-4, warmup_steps=2), [5e-5, 1e-4, 1e-4, 1e-4]),
    ],
)
def test_the_rate_of_the_steps_after_a_thaw(request_: LearningRateRequest, expected: list[float]) -> None:
    """Released at step 10; the first step after it has 1/warmup_steps of the rate."""
    rates = [rate([Freezing(request_, 10)], step) for step in (10, 11, 12, 13)]

    assert rates == pytest.approx(expected, rel=1e-12)


def test_before_the_thaw_the_group_has_the_rate_of_its_home() -> None:
    """A Freezer that begins later does not change the rate before."""
    assert rate([Freezing(LearningRateRequest(absolute=1e-4), None)], 3) == 0.1


def test_the_last_to_let_go_is_heard() -> None:
    """Two Freezers ask; and one that asks for nothing delays the warm-up, for it held longer."""
    early, late = LearningRateRequest(absolute=1e-4), LearningRateRequest(absolute=1e-3, warmup_steps=10)

    assert rate([Freezing(early, 5), Freezing(late, 8)], 30) == 1e-3
    assert rate([Freezing(late, 8), Freezing(None, 20)], 20) == pytest.approx(1e-4)


def test_on_a_tie_the_lowest_rate_counts() -> None:
    """Whatever the order of the callbacks."""
    low, high = (
        Freezing(LearningRateRequest(absolute=1e-4), 5),
        Freezing(LearningRateRequest(absolute=1e-3), 5),
    )

    assert rate([low, high], 9) == rate([high, low], 9) == 1e-4


def test_a_tensor_rate_stays_the_same_tensor() -> None:
    """Capturable optimizers keep the rate on the device."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=torch.tensor(0.1))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": torch.tensor(0.1)})
    tensor = optimizer.param_groups[1]["lr"]
    ThawedGroup(optimizer, 1, 0, [Freezing(LearningRateRequest(factor=0.5), 0)]).set_learning_rate(
        Moment(0, 0)
    )

    assert optimizer.param_groups[1]["lr"] is tensor
    assert float(tensor) == pytest.approx(0.05)
