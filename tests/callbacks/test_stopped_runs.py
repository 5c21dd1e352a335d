"""A run that is stopped early: what it did not come to is said at its end, and nothing is guessed before."""

import logging
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations
from tests.callbacks.block_net import BlockNet
from tests.lab import NAMESPACES, batches, first_now, recorder, regression, trainer

LONE = NAMESPACES[0]
LATER = {"name_starts_with": "layer2", "until_epoch": 4}


def early_stopping(namespace: str) -> Any:
    """One for which nothing is progress: it stops the run after the second epoch."""
    kind = import_module(f"{namespace}.callbacks").EarlyStopping
    return kind(monitor="val/loss", patience=1, min_delta=1.0e9)


def good_enough(namespace: str) -> Any:
    """An EarlyStopping with patience, for which the first value is reason to stop."""
    kind = import_module(f"{namespace}.callbacks").EarlyStopping
    return kind(monitor="val/loss", patience=50, stopping_threshold=1.0e9)


def timer(namespace: str) -> Any:
    return import_module(f"{namespace}.callbacks").Timer(timedelta(microseconds=1), verbose=False)


def own_stop(namespace: str) -> Any:
    return recorder(namespace, lambda run, _: setattr(run, "should_stop", True), "on_validation_end")


def warnings_of(namespace: str, callbacks: list[Any], log: pytest.LogCaptureFixture, **options: Any) -> str:
    """The warnings of a run of eight epochs, or fewer."""
    log.clear()
    with log.at_level(logging.WARNING, logger="lighter_freezers"):
        run = trainer(namespace, callbacks=callbacks, **{"max_epochs": 8, **options})
        run.fit(regression(namespace), batches(), batches())
    return "\n".join(text for text in log.messages if "gradient flows" not in text)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize(
    "condition", [{"until_epoch": 4}, {"until_metric": {"monitor": "val/loss", "below": 0}}]
)
def test_a_freezer_that_never_thawed_is_named(namespace: str, condition: Any, caplog: Any) -> None:
    """With what to write, and once."""
    freezer = Freezer(name_starts_with="layer2", **condition)

    assert warnings_of(namespace, [freezer, early_stopping(namespace)], caplog) == (
        f"{freezer}: the run was stopped before it thawed. Give EarlyStopping more patience, or thaw at a "
        "plateau of less (until_metric)"
    )


@pytest.mark.parametrize("stop", first_now([good_enough, timer, own_stop]))
def test_whatever_else_stops_the_run_has_no_patience(stop: Any, caplog: Any) -> None:
    freezer = Freezer(**LATER)

    assert warnings_of(LONE, [freezer, stop(LONE)], caplog) == (
        f"{freezer}: the run was stopped before it thawed"
    )


@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
def test_operations_that_were_not_reached_are_counted(namespace: str, caplog: Any) -> None:
    operations = [
        {"name": "freeze_layer", "value": "layer2", "max_wait_iters": 0},
        {"name": "unfreeze_layer", "value": "layer2", "max_wait_iters": 20},
    ]
    said = warnings_of(namespace, [LayerOperations(operations), early_stopping(namespace)], caplog)

    assert said.startswith("LayerOperations: 1 of 2 operations were not reached; next was 'unfreeze_layer")


@pytest.mark.parametrize(
    "arguments",
    [
        {"name_starts_with": "layer2", "until_epoch": 1},
        {"name_starts_with": "layer2", "windows": [[0, 2], [6, 30]]},
        {"name_starts_with": "layer2", "from_step": 20, "until_step": 24},
        {"name_starts_with": "layer2"},
        {"train": "head"},
    ],
    ids=["thawed", "thawed once", "not yet held", "held for good", "all but the head"],
)
def test_a_freezer_that_did_what_it_could_is_silent(arguments: Any, caplog: Any) -> None:
    """EarlyStopping is usual beside one."""
    assert warnings_of(LONE, [Freezer(**arguments), early_stopping(LONE)], caplog) == ""


def test_what_is_told_before_is_not_told_again(caplog: Any) -> None:
    """A run too short for the hold ends with its last epoch, in which EarlyStopping gives up too."""
    said = warnings_of(LONE, [Freezer(**LATER), early_stopping(LONE)], caplog, max_epochs=2)

    assert said == f"{Freezer(**LATER)} never thaws: the run ends at step 8, in epoch 1"


@pytest.mark.parametrize("length", [{"max_epochs": 2}, {"max_epochs": 3, "min_epochs": 3}, {"max_steps": 8}])
def test_a_run_that_played_its_length_was_not_stopped(length: Any, caplog: Any) -> None:
    """EarlyStopping gives up after the second epoch, or may not stop the run yet."""
    freezer = Freezer(name_starts_with="layer2", until_metric={"monitor": "val/loss", "below": 0})
    assert warnings_of(LONE, [freezer, early_stopping(LONE)], caplog, **length) == ""


@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
@pytest.mark.parametrize(
    ("callback", "unmet"),
    [
        (Freezer(names="head.bias", until_metric={"monitor": "val/loss", "below": 0}), "it thawed"),
        (GradualUnfreezing(plateau={"monitor": "val/loss", "patience": 50}), "its last stage"),
        (
            GradualUnfreezing(
                stages=[
                    {"thaw": "head", "until_metric": {"monitor": "val/loss", "below": 0}},
                    {"thaw": "*"},
                ]
            ),
            "its last stage",
        ),
        (Freezer(names="head.bias", until_metric={"monitor": "val/loss", "above": 0}), None),
        (Freezer(names="head.bias"), None),
        (Freezer(names="head.bias", until_step=5), None),
        (GradualUnfreezing(every_n_epochs=1), None),
    ],
    ids=["below", "plateau", "stages", "met", "for good", "by step", "by epoch"],
)
def test_a_condition_that_no_value_met_is_a_line_of_the_log(
    callback: Any, unmet: str | None, namespace: str, caplog: Any
) -> None:
    """It is no warning: the run may go on from its checkpoint."""
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        run = trainer(namespace, callbacks=[callback], max_epochs=4)
        run.fit(regression(namespace, BlockNet), batches(), batches())

    said = [(each.levelname, each.message) for each in caplog.records if "the run ended" in each.message]
    assert said == ([("INFO", f"{callback}: the run ended before {unmet}")] if unmet else [])
