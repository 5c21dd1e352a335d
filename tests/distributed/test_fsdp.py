"""FSDP2 through Lightning's ModelParallelStrategy, two gloo processes on the CPU, against one process."""

import os
from pathlib import Path
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


def sharded(optimizer: Any = adamw, **options: Any) -> tuple[Any, Any]:
    """A module whose layers are sharded over two ranks, and the strategy."""
    from pytorch_lightning.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    module = regression("pytorch_lightning", optimizer=optimizer)

    def configure_model(self: Any) -> None:
        for layer in (*self.network.children(), self.network):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    type(module).configure_model = configure_model
    sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    return module, ModelParallelStrategy(**sizes, process_group_backend="gloo", **options)


def fit(schedule: str, num_ranks: int) -> dict[str, Any]:
    """Train for two epochs; the whole weights, and the frozen layers at each optimizer step."""
    module, strategy = regression("pytorch_lightning", optimizer=adamw), {}
    loader = batches(64, int(os.environ["RANK"]) if num_ranks > 1 else 0, num_ranks)
    if num_ranks > 1:
        module, strategy["strategy"] = sharded()
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


FREEZERS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "plain": [{"name_starts_with": "layer1.", "until_step": 2}],
    "rate": [{"name_starts_with": "layer1.", "until_step": 2, "unfreeze_lr": 0.003}],
    "late": [
        {"name_starts_with": "layer1.", "until_step": 2, "unfreeze_lr": 0.003},
        {"name_starts_with": "layer2.", "until_epoch": 2},
    ],
}
RESUMES = [  # the run that saves, the one that resumes, in a folder or a file; the error
    ("plain", "plain", True, ""),
    ("rate", "rate", True, ""),
    ("rate", "rate", False, ""),
    ("late", "late", True, ""),
    ("late", "late", False, ""),
    ("none", "rate", False, ""),
    ("rate", "none", True, ""),
    ("none", "rate", True, "1 there, 2 in this run"),
    ("rate", "plain", True, "2 there, 1 in this run"),
    ("rate", "plain", False, "resume with the Freezers, rates and groups of the run"),
]


def state_of(run: Any, module: Any) -> dict[str, torch.Tensor]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    state = run.optimizers[0].state
    return {names[id(p)]: full(values["exp_avg"]).clone() for p, values in state.items()}


def run_part(freezers: str, in_folder: bool, num_epochs: int, ckpt_path: str | None) -> tuple[Any, ...]:
    """The Trainer, the module, and the optimizer's state when training began."""
    module, strategy = sharded(save_distributed_checkpoint=in_folder)
    loader = batches(32, int(os.environ["RANK"]), 2)
    began = recorder("pytorch_lightning", state_of, "on_train_start")
    callbacks = [*(Freezer(**arguments) for arguments in FREEZERS[freezers]), began]
    run = trainer(
        "pytorch_lightning", callbacks=callbacks, max_epochs=num_epochs, devices=2, strategy=strategy
    )
    run.fit(module, loader, loader, ckpt_path=ckpt_path)
    return run, module, began.seen[0]


def resume_all(folder: str) -> list[Any]:
    """For each of `RESUMES`: the state saved and loaded, the weights resumed and whole; or the error."""
    found: list[Any] = []
    for number, (before, after, in_folder, _) in enumerate(RESUMES):
        path = f"{folder}/{number}.ckpt"
        first, module, _ = run_part(before, in_folder, 1, None)
        saved = state_of(first, module)
        first.save_checkpoint(path)
        try:
            _, resumed, loaded = run_part(after, in_folder, 2, path)
        except RuntimeError as error:
            found.append(str(error))
            continue
        whole = run_part(before, in_folder, 2, None)[1] if before == after else resumed
        weights = [{name: full(p) for name, p in m.state_dict().items()} for m in (resumed, whole)]
        found.append([saved, loaded, *weights])
    return found


@pytest.mark.wide
@pytest.mark.filterwarnings("ignore")
def test_sharded_state_resumes_by_name_or_is_refused(tmp_path: Path) -> None:
    """Also of what is frozen at the first step, which torch would pass over; and weights, to the bit."""
    for found in run_ranks(resume_all, tmp_path, 2, str(tmp_path)):
        for (*_, error), each in zip(RESUMES, found, strict=True):
            if error:
                assert error in each
                continue
            for one, other in (each[:2], each[2:]):
                assert one.keys() == other.keys()
                assert all(torch.equal(one[name], other[name]) for name in one)
