"""Gradient norms on two gloo processes, with DDP and with FSDP2, against those of one process."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import Freezer, GradientNormMonitor
from tests.distributed.run_ranks import run_ranks
from tests.lab import adamw, batches, regression, trainer

LONE = "pytorch_lightning"


def fit(folder: str, strategy: Any, num_ranks: int, clip: float | None) -> list[torch.Tensor]:
    """Two epochs with accumulation; the weights of this rank."""
    rank = int(os.environ["RANK"]) if num_ranks > 1 else 0
    loader = batches(64, rank, num_ranks)
    module = regression(LONE, optimizer=adamw)
    if strategy == "fsdp2":
        strategy = _sharded(module, num_ranks)
    callbacks = [Freezer(name_starts_with="layer2", until_step=2), GradientNormMonitor(1, dirpath=folder)]
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": clip, "max_epochs": 2}
    run = trainer(LONE, callbacks=callbacks, devices=num_ranks, strategy=strategy, **options)
    run.fit(module, loader, loader)
    full = [getattr(value, "full_tensor", lambda value=value: value)() for value in module.parameters()]
    return [value.detach().clone() for value in full]


def _sharded(module: Any, num_ranks: int) -> Any:
    from pytorch_lightning.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    def configure_model(self: Any) -> None:
        for layer in (*self.network.children(), self.network):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    type(module).configure_model = configure_model
    return ModelParallelStrategy(
        data_parallel_size=num_ranks, tensor_parallel_size=1, process_group_backend="gloo"
    )


def fit_all(folder: str) -> list[list[torch.Tensor]]:
    """What each rank does."""
    return [
        fit(f"{folder}/ddp", "ddp", 2, None),
        fit(f"{folder}/clipped", "ddp", 2, 0.01),
        fit(f"{folder}/sharded", "fsdp2", 2, 0.01),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that two ranks wrote, and those of one process beside them."""
    root = tmp_path_factory.mktemp("norms")
    first, second = run_ranks(fit_all, root, 2, str(root))
    assert all(
        torch.equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    fit(str(root / "alone"), "auto", 1, None)
    fit(str(root / "alone_clipped"), "auto", 1, 0.01)
    return root


def table(folder: Path, kind: str) -> list[list[float | None]]:
    with (folder / f"gradient_analysis.{kind}.csv").open(newline="") as file:
        return [[float(cell) if cell else None for cell in row] for row in list(csv.reader(file))[1:]]


@pytest.mark.parametrize(
    ("name", "alone"), [("ddp", "alone"), ("clipped", "alone_clipped"), ("sharded", "alone_clipped")]
)
@pytest.mark.parametrize("kind", ["group_norms", "losses"])
def test_two_ranks_write_what_one_process_writes(folder: Path, name: str, alone: str, kind: str) -> None:
    """Of reduced gradients and of losses over both ranks, by one rank, with the same empty cells."""
    found, expected = table(folder / name, kind), table(folder / alone, kind)

    assert len(found) == len(expected) > 4
    for row, wanted in zip(found, expected, strict=True):
        assert [cell is None for cell in row] == [cell is None for cell in wanted]
        assert [cell for cell in row if cell is not None] == pytest.approx(
            [cell for cell in wanted if cell is not None], rel=1e-4
        )
    assert not list((folder / name).glob("*-v1*"))
