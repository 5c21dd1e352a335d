"""Two gloo processes that unfreeze gradually: ranks bit-equal, and equal to one process."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import GradualUnfreezing
from tests.callbacks.block_net import BlockNet
from tests.distributed.run_ranks import run_ranks
from tests.lab import adamw, batches, recorder, regression, trainer

PACES: dict[str, dict[str, Any]] = {
    "epochs": {"every_n_epochs": 1, "lr_decay": 2.6},
    "steps": {"every_n_steps": 2, "direction": "bottom-up", "layers_per_stage": 2, "warmup_steps": 3},
    "stages": {
        "stages": [
            {"thaw": ["norm", "head"], "until_step": "25%"},
            {"thaw": "blocks.3", "freeze": "norm", "until_metric": {"monitor": "val/loss", "below": 1.0e9}},
            {"thaw": "*", "unfreeze_lr_factor": {"stem": 0.1}},
        ],
        "frozen_mode": "eval",
    },
    "plateau": {"plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 0.2}},
}


def fit(pace: str, num_ranks: int) -> dict[str, Any]:
    """Three epochs of four steps."""
    from pytorch_lightning.strategies import DDPStrategy

    module = regression("pytorch_lightning", BlockNet, adamw)
    seen = recorder(
        "pytorch_lightning", lambda t, m: (t.global_step, [p.requires_grad for p in m.parameters()])
    )
    loader = batches(32, int(os.environ["RANK"]) if num_ranks > 1 else 0, num_ranks)
    strategy = {"strategy": DDPStrategy(process_group_backend="gloo")} if num_ranks > 1 else {}
    trainer(
        "pytorch_lightning",
        callbacks=[GradualUnfreezing(**PACES[pace]), seen],
        max_epochs=3,
        val_check_interval=2,
        devices=num_ranks,
        **strategy,
    ).fit(module, loader, loader)
    return {"weights": dict(module.state_dict()), "frozen": dict(seen.seen)}


def fit_all() -> list[dict[str, Any]]:
    """What each rank does."""
    return [fit(pace, 2) for pace in PACES]


@pytest.mark.wide
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """What is frozen at each step, and the weights at the end."""
    for pace, one, other in zip(PACES, *run_ranks(fit_all, tmp_path, 2), strict=True):
        single = fit(pace, 1)
        assert len({tuple(flags) for flags in single["frozen"].values()}) >= 3
        assert one["frozen"] == other["frozen"] == single["frozen"]
        for name, value in single["weights"].items():
            assert torch.equal(one["weights"][name], other["weights"][name])
            torch.testing.assert_close(one["weights"][name], value, rtol=1e-5, atol=1e-5)
