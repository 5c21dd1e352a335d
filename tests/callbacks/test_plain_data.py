"""What a run leaves on disk loads in a process that does not have this package."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import Freezer, LayerOperations, LoraRankScheduler
from tests.callbacks.block_net import BlockNet
from tests.lab import NormNet, adamw, batches, recorder, regression, trainer
from tests.lora.lora_lab import mixed

LONE = "pytorch_lightning"
LOAD = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lighter_freezers":
            raise ImportError(name)

sys.meta_path.insert(0, Block())
import torch
for path in sys.argv[1:]:
    if path.endswith(".ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint["callbacks"]["lighter_freezers.engine"]["format"]
    else:
        network = torch.load(path, weights_only=False).train()
        network.load_state_dict(network.state_dict())
        network(torch.randn(4, 8)).sum().backward()
assert "lighter_freezers" not in sys.modules
"""


def freezers() -> list[Any]:
    """Norm layers that stand still, a boundary of the backward pass, and a condition that was met."""
    met = {"monitor": "train/loss", "below": 1.0e9}
    return [
        Freezer(patterns=["backbone.*", "stem.*", "blocks.0.*", "blocks.1.*"], on_missing="warn"),
        Freezer(names="head.weight", until_metric=met, until_step=5),
    ]


def operations() -> list[Any]:
    return [LayerOperations([{"name": "freeze_layer", "value": "head", "max_wait_iters": 1}])]


def ranks() -> list[Any]:
    """New ranks, and hooks that listen to the layers."""
    return [
        LoraRankScheduler(
            [{"step": step, "rank_pattern": {"proj": 5 - step}} for step in (1, 4)], shrink="kfac"
        )
    ]


@pytest.mark.parametrize(
    ("network", "callbacks"),
    [
        pytest.param(NormNet, freezers, id="norms"),
        pytest.param(BlockNet, freezers, id="blocks", marks=pytest.mark.wide),
        pytest.param(NormNet, operations, id="operations", marks=pytest.mark.wide),
        pytest.param(mixed, ranks, id="ranks", marks=pytest.mark.wide),
    ],
)
@pytest.mark.filterwarnings("ignore:.* match no parameter", "ignore:One rule matches no parameter")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_checkpoints_and_models_load_without_the_package(
    network: Any, callbacks: Any, tmp_path: Path
) -> None:
    """A model that was pickled in the middle of the run too, with all hooks in place."""
    saver = recorder(LONE, lambda run, module: torch.save(module.network, tmp_path / f"{run.global_step}.pt"))
    run = trainer(LONE, callbacks=[*callbacks(), saver], max_epochs=1)
    module = regression(LONE, network, adamw)
    run.fit(module, batches())
    run.save_checkpoint(tmp_path / "end.ckpt")
    torch.save(module.network, tmp_path / "end.pt")

    files = sorted(map(str, tmp_path.iterdir()))
    assert len(files) == 6
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, *files],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
    )
    assert loaded.returncode == 0, loaded.stderr
