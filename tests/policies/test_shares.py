"""Policies with shares of the run do what those with the steps do, in a resumed run too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers import AutoFreeze, AutoRgn, BlockCycling, FreezeOut, Lisa, Misa, plan
from tests.lab import Stream, adamw, batches, regression, trainer
from tests.policies.policy_lab import LONE, NUM_STEPS, Run, Tower

PAIRS: dict[str, Callable[[Any, Any], Any]] = {  # of a quarter and of the whole run
    "Lisa": lambda quarter, _: Lisa(num_blocks=2, every_n_steps=quarter, seed=5),
    "BlockCycling": lambda quarter, _: BlockCycling(every_n_steps=quarter, seed=1),
    "AutoFreeze": lambda quarter, _: AutoFreeze(every_n_steps=quarter),
    "FreezeOut": lambda quarter, all: FreezeOut(all, t0=0.6, every_n_steps=quarter),
    "Misa": lambda quarter, _: Misa(share=0.3, every_n_steps=quarter, sharpness=2.0, seed=2),
    "AutoRgn": lambda quarter, _: AutoRgn(every_n_steps=quarter),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_share_is_its_number_of_steps(name: str, tmp_path: Path) -> None:
    """What trains, rates, weights and optimizer state, to the bit; also from inside a window."""
    saved = [(step, tmp_path / f"{step}.ckpt") for step in (3, 5, 8)]
    in_steps = Run([PAIRS[name](3, NUM_STEPS)])
    whole = Run([PAIRS[name]("25%", "100%")], save=saved)

    assert whole.equals(in_steps)
    for step, path in saved:
        assert Run([PAIRS[name]("25%", "100%")], ckpt_path=path).equals(in_steps, step), step


@pytest.mark.filterwarnings("ignore:The run now has 8 steps, and 12 when it began")
def test_a_resumed_run_keeps_the_length_of_the_first(tmp_path: Path) -> None:
    """With other epochs the windows stay as they were."""
    whole = Run([Lisa(every_n_steps="25%")], save=[(5, tmp_path / "cut.ckpt")])
    shorter = Run([Lisa(every_n_steps="25%")], ckpt_path=tmp_path / "cut.ckpt", max_epochs=2)

    assert [names for names, _ in shorter.seen] == [names for names, _ in whole.seen[5:8]]


def test_one_policy_in_two_runs_of_different_lengths() -> None:
    """Each has its own quarter."""
    policy = Lisa(every_n_steps="25%", seed=5)
    Run([policy], max_epochs=1)

    assert Run([policy]).equals(Run([Lisa(every_n_steps=3, seed=5)]))


def test_a_run_of_unknown_length_is_refused() -> None:
    with pytest.raises(RuntimeError, match="25% of the run is unknown"):
        Run([Lisa(every_n_steps="25%")], loader=Stream(), max_epochs=2)


def test_the_plan_has_the_steps() -> None:
    fit = trainer(LONE, callbacks=[BlockCycling(every_n_steps="25%")], max_epochs=3)
    planned = plan(fit, regression(LONE, Tower, adamw), batches(), num_rounds=1, num_timed=0)

    assert [phase.step for phase in planned.phases] == [0, 3, 6, 9]


@pytest.mark.parametrize("value", ["0%", "120%", "x%", "3"])
def test_what_is_no_share(value: str) -> None:
    with pytest.raises((TypeError, ValueError), match="every_n_steps"):
        Lisa(every_n_steps=value)
    with pytest.raises((TypeError, ValueError), match="num_steps"):
        FreezeOut(value)
