"""Learning rate curves scaled and restarted, against schedulers built that way from the start."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from lighter_freezers.engine.effects.learning_rate_curves import RateCurves

Build = Callable[[torch.optim.Optimizer], Any]

SCHEDULERS: dict[str, Build] = {
    "lambda": lambda o: lrs.LambdaLR(o, lambda step: 1 / (1 + step)),
    "step": lambda o: lrs.StepLR(o, 3, 0.5),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, 10),
    "restarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 4),
    "exponential": lambda o: lrs.ExponentialLR(o, 0.9),
    "one_cycle": lambda o: lrs.OneCycleLR(o, [g["lr"] for g in o.param_groups], 12, cycle_momentum=False),
    "sequence": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, total_iters=4), lrs.CosineAnnealingLR(o, 8)], [4]
    ),
    "chain": lambda o: lrs.ChainedScheduler([lrs.LinearLR(o, 0.1, total_iters=4), lrs.ExponentialLR(o, 0.9)]),
}


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups)


def rates_of(built: torch.optim.Optimizer, scheduler: Any, num_steps: int) -> list[list[float]]:
    """The rates in force at each step."""
    found = []
    for _ in range(num_steps):
        found.append([group["lr"] for group in built.param_groups])
        built.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("at", [0, 2, 6])
def test_scaling_is_as_if_the_curve_had_been_so(build: Build, at: int) -> None:
    """At any step: from then on the rates are those of a scheduler with other rates from the start."""
    ours, theirs = optimizer(0.8, 0.2), optimizer(0.4, 0.1)
    scheduler = build(ours)
    curves = RateCurves([ours], [scheduler])
    rates_of(ours, scheduler, at)
    curves.scale(0.5)

    expected = rates_of(theirs, build(theirs), 12)
    for one, other in zip(rates_of(ours, scheduler, 12 - at), expected[at:], strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
def test_to_set_the_rate_is_to_set_the_height_of_the_curve(build: Build) -> None:
    """All groups have the curve of a scheduler that was built with this rate."""
    ours, theirs = optimizer(0.8, 0.2), optimizer(0.1, 0.1)
    scheduler = build(ours)
    curves = RateCurves([ours], [scheduler])
    rates_of(ours, scheduler, 5)
    first = build(theirs)
    height = theirs.param_groups[0]["initial_lr"]
    curves.set_height(height)

    for one, other in zip(rates_of(ours, scheduler, 7), rates_of(theirs, first, 12)[5:], strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
def test_restarting_begins_anew_at_the_height_of_now(build: Build) -> None:
    """Warm-up included; what was scaled before stays scaled."""
    ours, theirs = optimizer(0.8, 0.2), optimizer(0.4, 0.1)
    scheduler = build(ours)
    curves = RateCurves([ours], [scheduler])
    rates_of(ours, scheduler, 3)
    curves.scale(0.5)
    rates_of(ours, scheduler, 4)
    curves.restart()

    for one, other in zip(rates_of(ours, scheduler, 12), rates_of(theirs, build(theirs), 12), strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


def test_a_checkpoint_of_optimizer_and_scheduler_holds_it_all() -> None:
    """Built again and loaded, they continue on the scaled curve, and restart from the first one."""
    ours, anew = optimizer(0.8), optimizer(0.8)
    scheduler, other = (SCHEDULERS["sequence"](built) for built in (ours, anew))
    curves, later = RateCurves([ours], [scheduler]), RateCurves([anew], [other])
    rates_of(ours, scheduler, 3)
    curves.scale(0.5)
    anew.load_state_dict(ours.state_dict())
    other.load_state_dict(scheduler.state_dict())

    assert rates_of(anew, other, 5) == rates_of(ours, scheduler, 5)
    curves.restart()
    later.restart()
    assert rates_of(anew, other, 5) == rates_of(ours, scheduler, 5)


def test_without_a_scheduler_the_rate_itself_is_meant() -> None:
    """Each group gets it; tensors stay the same tensors."""
    rate = torch.tensor(0.5)
    built = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=rate, capturable=False, foreach=False)
    curves = RateCurves([built], [])
    curves.set_height(0.25)
    curves.scale(0.5)

    assert not curves.has_schedule
    assert built.param_groups[0]["lr"] is rate
    assert rate == 0.125


def test_a_plateau_has_no_curve() -> None:
    """Setting the rate sets the current rate; a restart begins at the initial rate, scaled."""
    built = optimizer(0.8)
    scheduler = lrs.ReduceLROnPlateau(built, factor=0.5, patience=0)
    curves = RateCurves([built], [scheduler])
    for _ in range(3):
        scheduler.step(1.0)
    assert curves.rates == [pytest.approx(0.2)]
    curves.set_height(0.1)
    assert curves.rates == [pytest.approx(0.1)]
    curves.restart()
    assert curves.rates == [pytest.approx(0.4)]
    assert scheduler.num_bad_epochs == 0


def test_what_nobody_can_know_is_refused() -> None:
    """A scheduler that is none of torch's, and a group with the rate 0."""

    class Homemade:
        optimizer = None

    with pytest.raises(RuntimeError, match="Homemade is not a torch LRScheduler"):
        RateCurves([optimizer(0.1)], [Homemade()])
    with pytest.raises(RuntimeError, match="learning rate 0"):
        RateCurves([optimizer(0.0)], []).set_height(0.1)
