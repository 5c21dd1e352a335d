"""FSDP2 through Lightning's ModelParallelStrategy, two gloo processes on the CPU, against one process."""

import os
from typing import Any

import pytest
import torch

from lighter_freezers import Freezer
from tests.distributed.run_ranks import run_ranks
from tests.lab import adamw, batches, frozen_layers, recorder, regression, trainer

SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "thaw": [{"name_starts_with": "layer2", "until_step": 2}],
    "freeze": [{"name_starts_with": "layer2", "from_step": 2}],
    "both": [
        {"name_starts_with": "layer2", "until_step": 2},
        {"name_starts_with": ["layer1.", "layer2"], "windows": [[1, 3], [5, 6]]},
        {"name_starts_with": "head", "until_metric": {"monitor": "val/loss", "below": 100.0}},
        {"names": "layer10.bias", "until_step": 3, "unfreeze_lr_factor": 0.5, "warmup_steps": 2},
    ],
}


def full(value: torch.Tensor) -> torch.Tensor:
    """A sharded tensor put together again."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def fit(schedule: str, num_ranks: int) -> dict[str, Any]:
    """Train for two epochs; the whole weights, and the frozen layers at each optimizer step."""
    from pytorch_lightning.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    module = regression("pytorch_lightning", optimizer=adamw)
    loader = batches(64, int(os.environ["RANK"]) if num_ranks > 1 else 0, num_ranks)
    strategy = {}
    if num_ranks > 1:

        def configure_model(self: Any) -> None:
            for layer in (*self.network.children(), self.network):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

        type(module).configure_model = configure_model
        parallel = ModelParallelStrategy(
            data_parallel_size=num_ranks, tensor_parallel_size=1, process_group_backend="gloo"
        )
        strategy = {"strategy": parallel}
    seen = recorder("pytorch_lightning", lambda trainer, m: (trainer.global_step, frozen_layers(m)))
    freezers = [Freezer(**arguments) for arguments in SCHEDULES[schedule]]
    trainer(
        "pytorch_lightning", callbacks=[*freezers, seen], max_epochs=2, devices=num_ranks, **strategy
    ).fit(module, loader, loader)
    return {"weights": {k: full(v) for k, v in module.state_dict().items()}, "frozen": dict(seen.seen)}


def fit_all() -> list[dict[str, Any]]:
    """What each rank does."""
    return [fit(schedule, 2) for schedule in SCHEDULES]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    ranks = run_ranks(fit_all, tmp_path_factory.mktemp("ranks"), 2)
    return dict(zip(SCHEDULES, zip(*ranks, strict=True), strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_sharded_ranks_equal_one_process(two_ranks: Any, schedule: str) -> None:
    """Flags of sharded parameters are changed as they are; no wrapper is rebuilt."""
    torch.set_num_threads(1)
    first, second = two_ranks[schedule]
    alone = fit(schedule, 1)

    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    assert first["frozen"] == second["frozen"] == alone["frozen"]
    assert len(set(map(tuple, alone["frozen"].values()))) > 1
    for key, weight in alone["weights"].items():
        assert torch.allclose(first["weights"][key], weight, atol=2e-6, rtol=0.0)
