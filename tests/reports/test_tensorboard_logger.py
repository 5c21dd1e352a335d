"""TensorBoardLogger: the cards of FreezeStateLogger come first, and the rest is as in Lightning."""

from importlib import import_module
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lighter_freezers import Freezer, FreezeStateLogger
from tests import lab
from tests.lab import NAMESPACES

HOMES = dict(zip(NAMESPACES, ("lighter_freezers", "lighter_freezers.lightning"), strict=True))


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_first_tags_are_those_of_what_is_frozen(namespace: str, tmp_path: Path) -> None:
    """By name, as TensorBoard orders them; the epochs are there, among the last."""
    logger = import_module(HOMES[namespace]).TensorBoardLogger(tmp_path, name="run")
    callbacks = [Freezer(name_starts_with="layer1.", until_step=4), FreezeStateLogger()]
    trainer = lab.trainer(namespace, logger=logger, callbacks=callbacks, max_epochs=2, log_every_n_steps=1)
    trainer.fit(lab.regression(namespace), lab.batches(), lab.batches())

    events = EventAccumulator(trainer.log_dir).Reload()
    scalars = sorted(events.Tags()["scalars"])
    assert scalars[:2] == ["freeze/frozen_share", "freeze/trainable_parameters"]
    assert scalars[-3:] == ["trainable_share/layer2", "trainer/epoch", "val/loss"]
    assert "epoch" not in scalars
    assert {event.value for event in events.Scalars("trainer/epoch")} == {0.0, 1.0}
    assert trainer.log_dir == str(tmp_path / "run" / "version_0")


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_it_is_lightnings_otherwise(namespace: str, tmp_path: Path) -> None:
    """The same class to Lightning, which asks for it, with the same arguments."""
    logger = import_module(HOMES[namespace]).TensorBoardLogger(tmp_path, name=None, version="a", prefix="p")
    assert isinstance(logger, import_module(f"{namespace}.loggers").TensorBoardLogger)
    logger.log_metrics({"epoch": 3, "x": 1.0}, step=2)
    logger.log_hyperparams({"width": 4})  # with a metric of -1, which is no card
    logger.save()
    assert sorted(EventAccumulator(logger.log_dir).Reload().Tags()["scalars"]) == ["p-trainer/epoch", "p-x"]
    logger.log_hyperparams({"width": 4}, {"hp_metric": 0.5})
    logger.save()
    events = EventAccumulator(logger.log_dir).Reload()
    assert [event.value for event in events.Scalars("p-hp_metric")] == [0.5]
