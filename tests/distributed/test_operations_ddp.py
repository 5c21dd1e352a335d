"""Operations on two gloo processes: the same decisions and the same bits on both, and as in one process."""

import os
from typing import Any

import pytest
import torch

from lighter_freezers import LayerOperations
from tests.distributed.run_ranks import run_ranks
from tests.lab import adamw, batches, frozen_layers, recorder, regression, trainer

LONE = "pytorch_lightning"
OPERATIONS = [
    {"name": "freeze_layer", "value": "layer1", "max_wait_iters": 1},
    {"name": "set_layer_lora_rank", "value": ["layer2", 2], "trigger_loss": 100.0},
    {"name": "set_layer_lora_rank", "value": ["layer2", 5], "max_wait_iters": 2},
    {"name": "unfreeze_layer", "value": "layer1", "max_wait_iters": 1},
    {"name": "merge_lora_weights", "value": None, "max_wait_iters": 2},
    {"name": "set_layer_lora_rank", "value": ["layer2", 1], "max_wait_iters": 1},
    {"name": "set_lr", "value": 0.002, "max_wait_iters": 0},
    {"name": "set_layer_lora_rank", "value": ["layer2", 0], "max_wait_iters": 2},
]
MONITORS = ("val/loss", "training_loss")


def fit(monitor: str, num_ranks: int) -> dict[str, Any]:
    """Two epochs of eight batches; ranks have different halves of each."""
    from pytorch_lightning.strategies import DDPStrategy

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"]) if num_ranks > 1 else 0
    module = regression(LONE, optimizer=adamw)
    loader = batches(64, rank, num_ranks)
    strategy = {"strategy": DDPStrategy(process_group_backend="gloo")} if num_ranks > 1 else {}
    callback = LayerOperations(OPERATIONS, monitor=monitor, average_over=2)
    seen = recorder(LONE, lambda t, m: (t.global_step, frozen_layers(m)))
    fitted = trainer(
        LONE, callbacks=[callback, seen], max_epochs=2, devices=num_ranks, val_check_interval=4, **strategy
    )
    torch.manual_seed(rank)  # the draws of new components must not depend on it
    fitted.fit(module, loader, loader)
    (action,) = fitted.callbacks[1].state_dict()["actions"].values()
    records = action["records"]
    optimizer = fitted.optimizers[0].state_dict()["state"]
    return {
        "weights": {key: value.clone() for key, value in module.state_dict().items()},
        "moments": {f"{i}/{key}": value for i, state in optimizer.items() for key, value in state.items()},
        "frozen": dict(seen.seen),
        "records": [(record["optimizer_step"], record["effect"]) for record in records],
    }


def fit_all() -> list[dict[str, Any]]:
    return [fit(monitor, 2) for monitor in MONITORS]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    ranks = run_ranks(fit_all, tmp_path_factory.mktemp("ranks"), 2)
    return dict(zip(MONITORS, zip(*ranks, strict=True), strict=True))


@pytest.mark.wide
@pytest.mark.parametrize("monitor", MONITORS)
def test_two_ranks_equal_one_process(two_ranks: Any, monitor: str) -> None:
    """The loss is the mean over ranks; ranks bit-equal, rounding apart from the single process."""
    first, second = two_ranks[monitor]
    alone = fit(monitor, 1)

    assert first["records"] == second["records"]
    assert [step for step, _ in first["records"]] == [step for step, _ in alone["records"]]
    assert len(first["records"]) == len(OPERATIONS)
    assert first["frozen"] == second["frozen"] == alone["frozen"]
    for part in ("weights", "moments"):
        assert all(torch.equal(value, second[part][key]) for key, value in first[part].items())
    for key, value in first["weights"].items():
        torch.testing.assert_close(value, alone["weights"][key], atol=2e-5, rtol=0)
