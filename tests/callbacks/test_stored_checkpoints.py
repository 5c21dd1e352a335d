"""Checkpoints that an earlier commit has saved resume: their format is a promise.

Whoever changes the format raises `FORMAT`, and stores new files:
`python -m tests.callbacks.test_stored_checkpoints`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, LoraPhases, LoraRankScheduler
from lighter_freezers.engine.checkpoint_identity import FORMAT
from tests.callbacks.block_net import BlockNet
from tests.callbacks.test_freezer_resume import same
from tests.lab import TinyNet, adamw, batches, recorder, regression, trainer
from tests.lora.lora_lab import mixed

LONE = "pytorch_lightning"
FOLDER = Path(__file__).parent / "stored_checkpoints"
PLATEAU = {"monitor": "val/loss", "patience": 1, "min_delta": 1.0e9}


def rules() -> list[Any]:
    """A condition that was met, one that waits, windows, and two that agree in what and when."""
    met, waits = {"monitor": "val/loss", "below": 1.0e9}, {"monitor": "val/loss", "plateau": {"patience": 9}}
    return [
        Freezer(name_starts_with="layer1.", until_metric=met),
        Freezer(names=["layer2.weight", "layer2.bias"], until_metric=waits, except_names="layer2.bias"),
        Freezer(patterns="layer10.*", windows=[[0, 3], [6, 20]], unfreeze_lr=0.001, warmup_steps=9),
        Freezer(patterns="layer10.*", windows=[[0, 3], [6, 20]], on_missing="warn"),
    ]


def operations() -> list[Any]:
    """Two that are done, one that waits for the training loss, one for its time."""
    return [
        LayerOperations(
            [
                {"name": "freeze_layer", "value": "layer1", "max_wait_iters": 2},
                {"name": "set_lr", "value": 0.02, "trigger_loss": float("inf")},
                {"name": "unfreeze_layer", "value": "layer1", "trigger_loss": -1.0, "max_wait_iters": 100},
                {"name": "scale_lr", "value": 0.5, "max_wait_iters": 1},
            ],
            monitor="training_loss",
            average_over=3,
        )
    ]


def gradual() -> list[Any]:
    return [GradualUnfreezing(plateau=PLATEAU, lr_decay=2.0, warmup_steps=3)]


def ranks() -> list[Any]:
    """Entries of each kind, half of them done, with new components and statistics."""
    entries = [
        {"step": 2, "rank_pattern": {"wte": 5, "h.0.fc": 2}},
        {"epoch": 5, "rank_pattern": {"conv": 1}},
        {"trigger_loss": 1.0e9, "max_wait_iters": 3, "rank_pattern": {"h.0.fc": 4}},
        {"trigger_loss": -1.0, "rank_pattern": {"proj": 1}},
        {"step": 4, "rank_pattern": {"proj": 0}},
    ]
    return [LoraRankScheduler(entries, monitor="val/loss", on_zero="freeze", shrink="kfac")]


def phases() -> list[Any]:
    return [
        LoraPhases(
            phases=[{"start_step": 0, "active_modules": "wte"}, {"start_step": 4, "active_modules": "proj"}]
        )
    ]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]]]] = {
    "rules": (TinyNet, rules),
    "operations": (TinyNet, operations),
    "gradual": (BlockNet, gradual),
    "ranks": (mixed, ranks),
    "phases": (mixed, phases),
}


def file_of(case: str) -> Path:
    return FOLDER / f"format_{FORMAT}_{case}.pt"


def fit(case: str, num_epochs: int, ckpt_path: Path | None = None) -> tuple[Any, Any]:
    """The Trainer, and what the engine remembered when training began."""
    network, callbacks = CASES[case]
    states = recorder(
        LONE,
        lambda run, _: next(
            c for c in run.callbacks if c.state_key == "lighter_freezers.engine"
        ).state_dict(),
        "on_train_start",
    )
    run = trainer(LONE, callbacks=[*callbacks(), states], max_epochs=num_epochs)
    run.fit(regression(LONE, network, adamw), batches(), batches(), ckpt_path=ckpt_path)
    return run, states.seen[0]


UNNAMED = {case: FOLDER / f"unnamed_{case}.pt" for case in ("rules", "gradual")}  # no parameter names


@pytest.mark.parametrize(
    ("case", "file"),
    [*((case, file_of(case)) for case in CASES), *UNNAMED.items()],
    ids=lambda each: Path(each).stem,
)
def test_a_stored_checkpoint_resumes(case: str, file: Path) -> None:
    """Everything that it remembers is taken over, and nothing is said; a warning would be an error here."""
    assert file.is_file(), "a new FORMAT? See the docstring of this file"
    stored = stored_in(file)
    stored.pop("groups", None)  # for the optimizers
    stored.setdefault("epoch_metrics", {})  # of runs cut between the last batch of an epoch and its end
    run, remembered = fit(case, 3, file)

    assert same(without_words(remembered), without_words(stored))
    assert run.global_step == 12


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_checkpoint_has_the_same_layout(case: str, tmp_path: Path) -> None:
    """Keys and types of all that is saved; also what no stored file would miss."""
    stored = stored_in(file_of(case))
    run, _ = fit(case, 2)
    run.save_checkpoint(tmp_path / "fresh.ckpt")
    fresh = torch.load(tmp_path / "fresh.ckpt", weights_only=True)["callbacks"]["lighter_freezers.engine"]

    for state in (fresh, stored):
        for options in (each for one in state["groups"]["optimizers"] for each in one["added"]):
            options.pop("decoupled_weight_decay", None)  # AdamW's own, from torch 2.7 on
    assert layout(fresh) == layout(stored)


def stored_in(file: Path) -> dict[str, Any]:
    """A state with what was added since it was stored, at the values that its absence means."""
    state = dict(torch.load(file, weights_only=True)["callbacks"]["lighter_freezers.engine"])
    state.setdefault("loss", None)
    for rule in state["rules"].values():
        rule.setdefault("released_in", 0)
    return state


def without_words(state: Any) -> Any:
    """Titles may be put otherwise in the same format."""
    if not isinstance(state, dict):
        return state
    kept = {key: without_words(value) for key, value in state.items() if key != "title"}
    return {**kept, "done": list(kept["done"])} if "done" in kept else kept


def layout(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: layout(value) for key, value in state.items()}
    return [layout(each) for each in state] if isinstance(state, list) else type(state).__name__


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in CASES:
        fit(name, 2)[0].save_checkpoint(file_of(name))
