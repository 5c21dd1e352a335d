"""A gradual unfreezing that is cut at any step and resumed equals the uninterrupted one, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
from torch.optim import lr_scheduler as lrs

from lighter_freezers import GradualUnfreezing
from tests.callbacks.block_net import fit_saving_each_step
from tests.callbacks.test_freezer_resume import same

LONE = "pytorch_lightning"
PACES: dict[str, dict[str, Any]] = {
    "steps": {"every_n_steps": 3, "lr_decay": 2.6, "warmup_steps": 4},
    "epochs": {"total_epochs": 3, "direction": "bottom-up"},
    "plateau": {"plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 0.5}, "lr_decay": 1.5},
    "rates": {"lr_decay": 2.0},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
]


def fit(pace: str, folder: Path, resume_from: Path | None = None) -> dict[str, Any]:
    """Three epochs of four steps, validated in the middle of each batch window, a checkpoint after each."""
    return fit_saving_each_step(
        GradualUnfreezing(**PACES[pace]),
        folder,
        resume_from,
        lambda o: {"scheduler": lrs.OneCycleLR(o, max_lr=0.05, total_steps=13), "interval": "step"},
        2 if pace == "plateau" else 1.0,
    )


@pytest.mark.parametrize("pace", PACES)
def test_resuming_from_every_step_gives_the_same_run(pace: str, tmp_path: Path) -> None:
    """Weights, optimizer, and what is frozen; a cut right before a validation is Lightning's own loss."""
    whole = fit(pace, tmp_path / "whole")
    assert len({tuple(flags) for flags in whole["frozen"].values()}) >= (1 if pace == "rates" else 3)
    for step in range(1, 12):
        if pace == "plateau" and step % 2 == 0:
            continue
        resumed = fit(pace, tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert same(resumed["weights"], whole["weights"]), step
        assert same(resumed["optimizer"], whole["optimizer"]), step
        assert resumed["frozen"] == {k: v for k, v in whole["frozen"].items() if k > step}, step
