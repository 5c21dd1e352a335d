"""Every argument that names a metric finds what a stock LighterModule logs, `val/loss/epoch`."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import CSVLogger

from lighter_freezers import (
    Freezer,
    GradientNormMonitor,
    GradualUnfreezing,
    LayerOperations,
    LoraRankScheduler,
)
from tests.callbacks.block_net import BlockNet
from tests.lab import batches, recorder, sgd, trainer
from tests.lora.lora_lab import mixed

lighter = pytest.importorskip("lighter")
FIRST_CHECK = 1.0e9  # any loss is below it
OPERATION = {"name": "freeze_layer", "value": "block.0", "trigger_loss": FIRST_CHECK, "max_wait_iters": 1000}
RANK = {"rank_pattern": {"proj": 5}, "trigger_loss": FIRST_CHECK, "max_wait_iters": 1000}

# argument -> a callback that changes something after the first validation; its argument is the metric's name
WAITING: dict[str, Callable[[str], Any]] = {
    "Freezer below": lambda name: Freezer(
        "stem.weight", until_metric={"monitor": name, "below": FIRST_CHECK}
    ),
    "Freezer plateau": lambda name: Freezer(
        "stem.weight",
        until_metric={"monitor": name, "plateau": {"patience": 1, "min_delta": 1.0e8}},
    ),
    "plateau": lambda name: GradualUnfreezing(
        plateau={"monitor": name, "patience": 1, "min_delta": 1.0e8}, layers_per_stage=4
    ),
    "stages": lambda name: GradualUnfreezing(
        stages=[{"thaw": "head", "until_metric": {"monitor": name, "below": FIRST_CHECK}}, {"thaw": "*"}]
    ),
    "restore_best": lambda name: GradualUnfreezing(
        stages=[{"thaw": "head", "until_epoch": 1}, {"thaw": "*"}], restore_best={"monitor": name}
    ),
    "LayerOperations": lambda name: LayerOperations([OPERATION], monitor=name),
    "LoraRankScheduler": lambda name: LoraRankScheduler([RANK], monitor=name),
}


class Model(lighter.LighterModule):
    """Logs what LighterModule logs by itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.training_step(batch, batch_idx)


def fit(callback: Any, folder: Path) -> list[int]:
    """How many elements trained in each of twelve steps."""
    network = mixed() if isinstance(callback, LoraRankScheduler) else BlockNet()
    seen = recorder(
        "pytorch_lightning",
        lambda _, module: sum(each.numel() for each in module.parameters() if each.requires_grad),
    )
    logger = CSVLogger(folder, version="run")  # without a logger lighter logs nothing
    run = trainer("pytorch_lightning", callbacks=[callback, seen], logger=logger, max_epochs=3)
    run.fit(Model(network=network, optimizer=sgd(network.parameters())), batches(), batches())
    return list(seen.seen)


@pytest.mark.parametrize(
    "name",
    ["val/loss", *(pytest.param(each, marks=pytest.mark.wide) for each in ("val/loss/epoch", "train/loss"))],
)
@pytest.mark.parametrize("argument", WAITING)
def test_the_change_comes_with_the_first_value(argument: str, name: str, tmp_path: Path) -> None:
    """With the first comparison, for a plateau."""
    trained = fit(WAITING[argument](name), tmp_path)
    change = next(step for step, each in enumerate(trained) if each != trained[0])

    assert change == (8 if "plateau" in argument else 4)
    assert (tmp_path / "lightning_logs/run/stages").exists() == (argument == "restore_best")


@pytest.mark.parametrize("argument", WAITING)
def test_a_misspelt_name_is_refused_with_the_closest(argument: str, tmp_path: Path) -> None:
    """Under the names that lighter logs, and without `/epoch`."""
    with pytest.raises(RuntimeError, match=r"'val/los', but it was never logged. Closest: val/loss"):
        fit(WAITING[argument]("val/los"), tmp_path)


@pytest.mark.parametrize("name", ["val/loss", "val/loss/epoch", None])
def test_the_norms_monitor_finds_it(name: str | None, tmp_path: Path) -> None:
    """Under either name, and by itself."""
    monitor = GradientNormMonitor(1, val_loss=name, dirpath=str(tmp_path / "norms"))
    fit(monitor, tmp_path)

    rows = list(csv.DictReader((tmp_path / "norms/gradient_analysis.losses.csv").read_text().splitlines()))
    assert sum(bool(row["val_loss"]) for row in rows) == 3
