"""A run cut at any step and resumed equals the uninterrupted one, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer
from tests.lab import (
    KILL,
    NAMESPACES,
    ResumableLoader,
    adamw,
    batches,
    first_now,
    frozen_layers,
    recorder,
    regression,
    resuming,
    trainer,
)

LONE = "pytorch_lightning"
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # each resumed run has its own folder
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
]
NUM_STEPS = 12  # three epochs of four batches


LOST = "saved at step ., right before a validation, which Lightning does not repeat"


def freezers() -> list[Freezer]:
    """All that has to be remembered: latches, windows, release steps, learning rates, equal instances."""
    plateau = {"monitor": "val/loss", "plateau": {"patience": 1, "min_delta": 0.5}}
    return [
        Freezer(name_starts_with="layer2", until_step=3, unfreeze_lr_factor=0.5, warmup_steps=6),
        Freezer(name_starts_with="layer1.", until_metric=plateau),
        Freezer(name_starts_with="layer1.", until_metric=plateau),
        Freezer(name_starts_with="layer10", windows=[[1, 2], [5, 7], [9, 10]], optimizer_state="reset"),
        Freezer(names="head.bias", until_epoch=2, unfreeze_lr=0.003),
    ]


def filtered(parameters: Any) -> torch.optim.Optimizer:
    return adamw([parameter for parameter in parameters if parameter.requires_grad])


def run(
    folder: Path,
    resume_from: Path | None = None,
    namespace: str = LONE,
    kill_at: int = -1,
    timed_only: bool = False,
) -> Any:
    """Train to the end, or to a kill, with a checkpoint after each step; returns all there is to compare."""
    torch.set_num_threads(1)
    from importlib import import_module

    checkpoint = import_module(f"{namespace}.callbacks").ModelCheckpoint(
        dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1
    )
    module = regression(
        namespace,
        optimizer=filtered,
        scheduler=lambda o: {
            "scheduler": lrs.OneCycleLR(o, max_lr=0.05, total_steps=NUM_STEPS + 1),
            "interval": "step",
        },
    )
    frozen = recorder(namespace, lambda trainer, m: (trainer.global_step, frozen_layers(m)))
    killer = recorder(
        namespace,
        lambda trainer, _: os.kill(os.getpid(), KILL) if trainer.global_step == kill_at else None,
        "on_before_optimizer_step",
    )
    fit = trainer(
        namespace,
        callbacks=[
            *(f for f in freezers() if not (timed_only and "plateau" in repr(f))),
            frozen,
            killer,
            checkpoint,
        ],
        max_epochs=NUM_STEPS // 4,
        enable_checkpointing=True,
        default_root_dir=folder,
    )
    loader = ResumableLoader(batches().dataset)
    fit.fit(module, loader, batches(), **resuming(fit, resume_from))
    optimizer = fit.optimizers[0]
    return {"weights": module.state_dict(), "optimizer": optimizer.state_dict(), "frozen": dict(frozen.seen)}


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, in every nested value."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_resuming_from_every_step_gives_the_same_run(namespace: str, tmp_path: Path) -> None:
    """Weights, optimizer state and groups, and what is frozen at each later step."""
    whole = run(tmp_path / "whole", namespace=namespace)
    assert len({tuple(layers) for layers in whole["frozen"].values()}) >= 5
    for step in range(1, NUM_STEPS):
        if (
            step % 4 == 0
        ):  # saved at the epoch's last batch, before its validation, which Lightning then leaves out
            with pytest.warns(UserWarning, match=LOST):
                run(tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt", namespace)
            continue
        resumed = run(tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt", namespace)
        assert same(resumed["weights"], whole["weights"]), step
        assert same(resumed["optimizer"], whole["optimizer"]), step
        assert resumed["frozen"] == {k: v for k, v in whole["frozen"].items() if k > step}, step


def test_schedules_resume_exactly_from_the_end_of_an_epoch_too(tmp_path: Path) -> None:
    """Without a metric nothing is lost there: the cut that the test above leaves out."""
    whole = run(tmp_path / "whole", timed_only=True)
    for step in (4, 8):
        resumed = run(tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt", timed_only=True)
        assert same(resumed["weights"], whole["weights"])
        assert same(resumed["optimizer"], whole["optimizer"])


@pytest.mark.parametrize("kill_at", first_now([9, 2]))
def test_a_killed_process_resumes_from_its_last_checkpoint(kill_at: int, tmp_path: Path) -> None:
    """SIGKILL between the backward pass and the optimizer step, in a process of its own."""
    call = f"run(Path({str(tmp_path / 'cut')!r}), kill_at={kill_at})"
    code = f"from tests.callbacks.test_freezer_resume import *; {call}"
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode in (-KILL, KILL)
    last = max((tmp_path / "cut").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    assert last.stem == f"step={kill_at}"

    whole, resumed = run(tmp_path / "whole"), run(tmp_path / "rest", last)
    assert same(resumed["weights"], whole["weights"])
    assert same(resumed["optimizer"], whole["optimizer"])


def test_a_checkpoint_from_validation_end_remembers_the_latch(tmp_path: Path) -> None:
    """The condition was met, but the next step has not come yet."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    freezer = {
        "name_starts_with": "layer2",
        "until_metric": {"monitor": "val/loss", "below": 1e9},
        "warmup_steps": 4,
    }
    for resume_from in (None, tmp_path / "epoch=0.ckpt"):
        module = regression(LONE, optimizer=adamw)
        seen = recorder(LONE, lambda _, m: frozen_layers(m), "on_train_batch_start")
        rates = recorder(
            LONE, lambda trainer, _: trainer.optimizers[0].param_groups[-1]["lr"], "on_before_zero_grad"
        )
        saver = ModelCheckpoint(
            dirpath=tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=False
        )
        fit = trainer(
            LONE, callbacks=[Freezer(**freezer), seen, rates, saver], max_epochs=2, enable_checkpointing=True
        )
        fit.fit(
            module,
            batches(),
            batches(),
            **resuming(fit, resume_from),
        )
        assert seen.seen[-4:] == [[]] * 4
        assert rates.seen[-4:] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])


def test_a_checkpoint_made_without_freezers_resumes_with_them(tmp_path: Path) -> None:
    """The schedule follows from the step; nothing has to be in the checkpoint."""
    plain = trainer(LONE, max_epochs=1)
    plain.fit(regression(LONE), batches(), batches())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    seen = recorder(LONE, lambda _, m: frozen_layers(m))
    fit = trainer(LONE, callbacks=[Freezer(name_starts_with="layer2", until_step=6), seen], max_epochs=2)
    fit.fit(regression(LONE), batches(), batches(), ckpt_path=tmp_path / "plain.ckpt")

    assert seen.seen == [["layer2"], ["layer2"], [], []]


def test_a_checkpoint_tests_and_validates_without_a_warning(tmp_path: Path) -> None:
    """`trainer.test(ckpt_path=...)` with the same callbacks."""
    module = regression(LONE)
    fit = trainer(LONE, callbacks=freezers(), max_epochs=1)
    fit.fit(module, batches(), batches())
    fit.save_checkpoint(tmp_path / "end.ckpt")

    (metrics,) = trainer(LONE, callbacks=freezers()).validate(
        module, batches(), ckpt_path=tmp_path / "end.ckpt", verbose=False
    )
    assert metrics["val/loss"] == fit.callback_metrics["val/loss"]


def test_a_checkpoint_saved_after_the_fit_remembers_too(tmp_path: Path) -> None:
    """`trainer.save_checkpoint` when the run is over has the same latches as one saved at its last step."""
    fit = trainer(LONE, callbacks=freezers(), max_epochs=1)
    states = recorder(LONE, lambda trainer, _: trainer.callbacks[1].state_dict())
    fit.callbacks.append(states)
    fit.fit(regression(LONE), batches(), batches())
    fit.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["lighter_freezers.engine"]

    assert saved["rules"].keys() == states.seen[-1]["rules"].keys()
    assert any(rule["released_at"] == 3 for rule in saved["rules"].values())
