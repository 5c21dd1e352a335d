"""Pictures and tables in the files of W&B, MLflow and Comet, written by their own clients offline."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import loggers

from lighter_freezers import Freezer, FreezeStateLogger
from tests import lab

pytestmark = pytest.mark.wide


def fit(logger: Any) -> None:
    """Twelve optimizer steps, with a change at the fifth."""
    callbacks = [Freezer(name_starts_with="layer1.", until_step=5), FreezeStateLogger()]
    trainer = lab.trainer("pytorch_lightning", logger=logger, callbacks=callbacks, max_epochs=3)
    trainer.fit(lab.regression("pytorch_lightning"), lab.batches(), lab.batches())


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture and a table for each change are among the media of the run."""
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # its client reads what `offline=True` sets once per process, so that an earlier run here would decide
    logger = loggers.WandbLogger(save_dir=tmp_path, mode="offline", project="freezers")
    fit(logger)
    logger.experiment.finish()

    media = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("media/**/*") if path.is_file()]
    assert sum("images/freeze/timeline" in path for path in media) >= 1
    assert sum("table/freeze/state" in path for path in media) == 2


def test_mlflow_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is an artifact, and so is the table of each change."""
    pytest.importorskip("mlflow", reason="needs mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its databases need the whole of MLflow
    fit(loggers.MLFlowLogger("freezers", tracking_uri=f"file:{tmp_path / 'mlruns'}"))

    found = {path.name for path in tmp_path.rglob("artifacts/freeze/**/*") if path.is_file()}
    assert {"timeline.png", "step_0.md", "step_5.md"} <= found


def test_comet_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive that waits for its upload names the picture and holds both tables."""
    pytest.importorskip("comet_ml", reason="needs comet_ml")
    monkeypatch.setenv("COMET_START_ONLINE", "false")  # for `online=False` Lightning turns Comet off
    quiet = {"log_env_host": False, "log_env_network": False}  # it leaves a socket open without a network
    logger = loggers.CometLogger(offline_directory=str(tmp_path), project="freezers", **quiet)
    fit(logger)
    logger.experiment.end()

    (archive,) = tmp_path.rglob("*.zip")
    with zipfile.ZipFile(archive) as files:
        content = b"\n".join(files.read(name) for name in files.namelist())
    assert b"freeze/timeline" in content
    assert content.count(b"| layer1 |") >= 2
