"""A run with operations, cut at any step and resumed, equals the uninterrupted one; nothing is replayed."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer, LayerOperations
from tests.lab import (
    NAMESPACES,
    ResumableLoader,
    adamw,
    batches,
    frozen_layers,
    recorder,
    regression,
    resuming,
    trainer,
)

LONE = "pytorch_lightning"
NUM_STEPS = 12  # three epochs of four batches
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # each resumed run has its own folder
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
    pytest.mark.filterwarnings("ignore:The checkpoint was saved at step"),
]


def operation(name: str, value: Any = None, **when: Any) -> dict[str, Any]:
    return {"name": name, "value": value, **when}


BY_WAIT = [
    operation("freeze_layer", "layer1", max_wait_iters=0),
    operation("set_layer_lora_rank", ["layer2", 2], max_wait_iters=1),
    operation("set_lr", 0.02, max_wait_iters=1),
    operation("set_layer_lora_rank", ["layer2", 5], max_wait_iters=1),
    operation("unfreeze_layer", "layer1", max_wait_iters=2),
    operation("merge_lora_weights", max_wait_iters=1),
    operation("scale_lr", 0.5, max_wait_iters=0),
    operation("set_layer_lora_rank", ["layer2", 1], max_wait_iters=2),
    operation("reset_lr_schedule", max_wait_iters=1),
    operation("set_layer_lora_rank", ["layer2", 0], max_wait_iters=1),
]
BY_VALIDATION = [
    operation("freeze_layer", "head", trigger_loss=1e9, reevaluate=True),
    operation("unfreeze_layer", "head", trigger_loss=1e9),
]
BY_LOSS = [
    operation("set_layer_lora_rank", ["layer10", 3], trigger_loss=1e9),
    operation("freeze_layer", "layer10", trigger_loss=1e9, reevaluate=True),
    operation("set_layer_lora_rank", ["layer10", 4], trigger_loss=1e9),
]


def callbacks(waits_for_validation: bool) -> list[Any]:
    """All kinds of operations, and a freezer beside them."""
    by_validation = [LayerOperations(BY_VALIDATION)] if waits_for_validation else []
    by_loss = LayerOperations(BY_LOSS, monitor="training_loss", average_over=3)
    freezer = Freezer(name_starts_with="head", windows=[[6, 8]])
    return [LayerOperations(BY_WAIT), by_loss, freezer, *by_validation]


def filtered(parameters: Any) -> torch.optim.Optimizer:
    return adamw([parameter for parameter in parameters if parameter.requires_grad])


def run(
    folder: Path,
    resume_from: Path | None = None,
    namespace: str = LONE,
    waits_for_validation: bool = False,
) -> Any:
    """Train to the end, with a checkpoint after each step; returns all there is to compare."""
    torch.set_num_threads(1)
    saver = import_module(f"{namespace}.callbacks").ModelCheckpoint(
        dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1, save_on_train_epoch_end=False
    )
    module = regression(
        namespace,
        optimizer=filtered,
        scheduler=lambda o: {"scheduler": lrs.LambdaLR(o, lambda step: 0.9**step), "interval": "step"},
    )
    frozen = recorder(namespace, lambda t, m: (t.global_step, frozen_layers(m)))
    loader = ResumableLoader(batches().dataset)
    fit = trainer(
        namespace,
        callbacks=[*callbacks(waits_for_validation), frozen, saver],
        max_epochs=3,
        enable_checkpointing=True,
        val_check_interval=2 if waits_for_validation else None,
    )
    fit.fit(module, loader, batches(), **resuming(fit, resume_from))
    state = torch.load(folder / f"step={NUM_STEPS}.ckpt", weights_only=True)
    return {
        "weights": {key: value.clone() for key, value in module.state_dict().items()},
        "optimizer": fit.optimizers[0].state_dict(),
        "scheduler": fit.lr_scheduler_configs[0].scheduler.state_dict()["_last_lr"],
        "actions": state["callbacks"]["lighter_freezers.engine"]["actions"],
        "frozen": dict(frozen.seen),
    }


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, in every nested value."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def steps_of(result: Any) -> list[list[int]]:
    records = [action["records"] for action in result["actions"].values()]
    return [[record["optimizer_step"] for record in queue] for queue in records]


KEYS = ("weights", "optimizer", "scheduler", "actions")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The uninterrupted run, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder)
    assert steps_of(result) == [[0, 1, 2, 3, 5, 6, 6, 8, 9, 10], [4, 4, 7]]
    return folder, result


@pytest.mark.parametrize("step", range(1, NUM_STEPS))
def test_resuming_from_every_step_gives_the_same_run(step: int, whole: Any, tmp_path: Path) -> None:
    """Steps with operations included; weights, optimizer, rates, records and flags."""
    folder, expected = whole
    resumed = run(tmp_path, folder / f"step={step}.ckpt", NAMESPACES[step % 2])

    assert [key for key in KEYS if not same(resumed[key], expected[key])] == []
    assert resumed["frozen"] == {k: v for k, v in expected["frozen"].items() if k > step}


@pytest.mark.parametrize("step", [1, 3])
def test_operations_that_wait_for_validation_resume_too(step: int, tmp_path: Path) -> None:
    """Where no validation is lost."""
    first = run(tmp_path / "whole", waits_for_validation=True)
    resumed = run(tmp_path / "rest", tmp_path / "whole" / f"step={step}.ckpt", waits_for_validation=True)

    assert steps_of(first)[2] == [2, 4]
    assert [key for key in KEYS if not same(resumed[key], first[key])] == []


@pytest.mark.wide
def test_another_process_gives_the_same_run(whole: Any, tmp_path: Path) -> None:
    """Right after a growth, whose new components wait for a gradient, and in the middle."""
    folder, expected = whole
    code = f"""
from tests.callbacks.test_layer_operations_resume import *
for step in (3, 7):
    result = run(Path({str(tmp_path)!r}) / str(step), Path({str(folder)!r}) / f"step={{step}}.ckpt")
    torch.save(result, Path({str(tmp_path)!r}) / f"{{step}}.pt")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=Path(__file__).parents[2], check=True)

    for step in (3, 7):
        resumed = torch.load(tmp_path / f"{step}.pt", weights_only=True)
        assert [key for key in KEYS if not same(resumed[key], expected[key])] == []
