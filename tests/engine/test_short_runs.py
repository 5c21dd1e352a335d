"""What begins after the end of a run, or never holds in it, is a warning before the first batch."""

import math
from typing import Any

import pytest
from torch.utils.data import DataLoader

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, LoraRankScheduler, apply_lora
from tests.lab import Stream, batches, regression, trainer

OPERATION = {"name": "freeze_layer", "value": "layer1"}
LATE = "begins after the run has ended, whose last is step 7 and epoch 1"  # four steps an epoch


def warnings_of(
    caplog: Any, *callbacks: Any, model: Any = None, data: Any = None, **options: Any
) -> list[str]:
    """What a run of two epochs warns of."""
    fit = trainer("pytorch_lightning", callbacks=list(callbacks), **{"max_epochs": 2, **options})
    fit.fit(model or regression("pytorch_lightning"), batches() if data is None else data, batches())
    words = ("after the run", "never holds", "never thaws")
    return [each.getMessage() for each in caplog.records if any(word in each.getMessage() for word in words)]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Freezer(names="head.bias", from_step=8), f"from step 8 {LATE}"),
        (lambda: Freezer(names="head.bias", from_epoch=2), f"from epoch 2 {LATE}"),
        (lambda: Freezer(names="head.bias", windows=[[0, 4], [9, 12]]), f": [9, 12) {LATE}"),
        (lambda: Freezer(names="layer2.weight", rows=0, from_step=8), f"from step 8 {LATE}"),
        (
            lambda: Freezer(names="head.bias", from_step=4, until_epoch=1),
            "never holds: with 4 steps to an epoch it would end before it begins",
        ),
        (
            lambda: LayerOperations([OPERATION | {"max_wait_iters": 30}]),
            f"freeze_layer layer1 at step 30 {LATE}",
        ),
    ],
    ids=["step", "epoch", "window", "rows", "contradiction", "wait"],
)
def test_what_no_step_of_the_run_reaches_is_a_warning(make: Any, expected: str, caplog: Any) -> None:
    """One for each, once."""
    [said] = warnings_of(caplog, make())

    assert expected in said


@pytest.mark.parametrize("when", [{"step": 8}, {"epoch": 2}])
def test_a_rank_that_comes_too_late(when: dict[str, int], caplog: Any) -> None:
    """The entry is named; one that comes in time is not."""
    model = regression("pytorch_lightning")
    apply_lora(model, {"r": 2, "target_modules": ["layer1", "layer2"]})
    schedule = [{"step": 7, "rank_pattern": {"layer2": 1}}, {**when, "rank_pattern": {"layer1": 1}}]
    [said] = warnings_of(caplog, LoraRankScheduler(schedule), model=model)

    assert "{layer1: 1} at" in said
    assert LATE in said
    assert "layer2" not in said


@pytest.mark.parametrize(
    "freezer",
    [
        {"from_step": 7},
        {"from_epoch": 1},
        {"from_step": 90, "from_epoch": 1},
        {"windows": [[7, 90]]},
        {"from_step": 3, "until_epoch": 1},
        {"until_step": 8},
        {"until_epoch": 2},
        {"until_step": 90, "until_epoch": 1},
        {"until_step": 90, "until_metric": {"monitor": "val/loss", "below": -1.0}},
        {"until_step": "100%"},
    ],
)
def test_what_a_step_of_the_run_reaches_is_none(freezer: dict[str, Any], caplog: Any) -> None:
    """The last step counts."""
    assert warnings_of(caplog, Freezer(names="head.bias", **freezer)) == []


@pytest.mark.parametrize("rows", [None, 0])
@pytest.mark.parametrize(
    "bounds", [{"until_step": 9}, {"until_epoch": 3}, {"until_step": 90, "until_epoch": 100}], ids=str
)
def test_what_never_thaws_is_a_warning(bounds: dict[str, Any], rows: int | None, caplog: Any) -> None:
    """A hold that would end after the run; one that the end of the run ends is none."""
    [said] = warnings_of(caplog, Freezer(names="layer2.weight", rows=rows, **bounds))

    assert said.endswith("never thaws: the run ends at step 8, in epoch 1")


@pytest.mark.parametrize(
    ("bounds", "options", "end"),
    [
        ({"until_epoch": 100}, {"max_steps": 6, "max_epochs": -1}, None),
        ({"until_epoch": 100, "until_step": 7}, {"max_steps": 6, "max_epochs": -1}, None),
        ({"until_step": 100}, {"max_steps": 6, "max_epochs": -1}, "at step 6"),
        ({"until_step": 100}, {}, None),
        ({"until_epoch": 100}, {}, "in epoch 1"),
    ],
    ids=str,
)
def test_of_a_stream_only_what_is_certain(bounds: Any, options: Any, end: str | None, caplog: Any) -> None:
    """An epoch may come before max_steps, and a step before the last epoch ends."""
    said = warnings_of(
        caplog, Freezer(names="head.bias", **bounds), data=DataLoader(Stream(), batch_size=None), **options
    )

    assert [each.partition("never thaws: the run ends ")[2] for each in said] == ([end] if end else [])


def test_an_unknown_length_says_nothing(caplog: Any) -> None:
    """Of a stream only the number of epochs is known."""
    data = DataLoader(Stream(), batch_size=None)
    late = Freezer(names="head.bias", from_step=500)

    assert warnings_of(caplog, late, data=data) == []
    [said] = warnings_of(caplog, Freezer(names="head.bias", from_epoch=2), data=data)
    assert said.endswith("from epoch 2 begins after the run has ended, whose last is epoch 1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Freezer(names="head.bias", from_step=500),
        lambda: Freezer(names="head.bias", until_step=500),
        lambda: GradualUnfreezing(every_n_steps=100, blocks=["layer1", "layer2"]),
        lambda: GradualUnfreezing(stages=[{"thaw": "head.", "until_step": 9}, {"thaw": "layer2."}]),
        lambda: LayerOperations([OPERATION | {"max_wait_iters": 30}]),
    ],
)
def test_a_trial_run_says_nothing_about_the_real_one(make: Any, caplog: Any) -> None:
    """Its few batches come to no stage and no operation."""
    assert warnings_of(caplog, make(), fast_dev_run=2) == []
    assert not [each for each in caplog.records if "not reached" in each.getMessage()]


@pytest.mark.parametrize(("loss", "message"), [(math.nan, "not NaN"), (-math.inf, "this would never happen")])
def test_a_rank_that_no_loss_could_trigger(loss: float, message: str) -> None:
    """Refused when the config is read."""
    with pytest.raises(ValueError, match=message):
        LoraRankScheduler([{"trigger_loss": loss, "rank_pattern": {"layer1": 1}}])
