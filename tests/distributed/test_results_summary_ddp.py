"""The summary of a run on two gloo processes, against that of one process."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers import ResultsSummary
from tests.distributed.run_ranks import run_ranks
from tests.lab import batches, regression, trainer

LONE = "pytorch_lightning"


def fit(folder: str, num_ranks: int) -> None:
    """Two epochs, each rank with its half of every batch."""
    rank = int(os.environ["RANK"]) if num_ranks > 1 else 0
    loader = batches(32, rank, num_ranks)
    strategy = "ddp" if num_ranks > 1 else "auto"
    options = {"devices": num_ranks, "strategy": strategy, "max_epochs": 2, "default_root_dir": folder}
    trainer(LONE, callbacks=[ResultsSummary()], **options).fit(regression(LONE), loader, loader)


def test_ranks_agree_on_one_file(tmp_path: Path) -> None:
    """The mean over both halves of each batch is that of the batch; the first rank writes, once."""
    run_ranks(fit, tmp_path, 2, str(tmp_path / "two"), 2)
    fit(str(tmp_path / "one"), 1)

    two, one = (read(tmp_path / name) for name in ("two", "one"))
    assert two["train_loss"] == pytest.approx(one["train_loss"])
    assert two["final_train_loss"] == pytest.approx(one["final_train_loss"])
    for key in ("optimizer_steps", "parameters", "trainable_parameters", "final_trainable_parameters"):
        assert two[key] == one[key]


def read(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.json")
    return dict(json.loads(file.read_text()))
