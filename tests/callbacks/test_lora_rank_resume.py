"""A run with changing LoRA ranks, cut at any step and resumed, equals the uninterrupted one bit for bit."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer, LoraRankScheduler
from lighter_freezers.lora.sites import find_lora_sites
from tests.callbacks.test_freezer_resume import same
from tests.lab import ResumableLoader, adamw, batches, recorder, regression, resuming, sgd, trainer
from tests.lora.lora_lab import mixed

LONE = "pytorch_lightning"
NUM_STEPS = 12  # three epochs of four batches
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]
SCHEDULE = [
    {"step": 2, "rank_pattern": {"wte": 5, "h.0.fc": 6, "conv": 2}},
    {"trigger_loss": 1.0e9, "rank_pattern": {"proj": 6}},
    {"step": 5, "rank_pattern": {"fc": 2, "proj": 0}},
    {"epoch": 1, "rank_pattern": {"conv": 0}},
    {"max_wait_iters": 4, "rank_pattern": {"wte": 1, "proj": 4}},
    {"step": 9, "rank_pattern": {"wte": 7, "conv": 3, "h.1.fc": 0}},
    {"step": 10, "rank_pattern": {"h.1.fc": 1}},
]


def two_groups(parameters: Any) -> torch.optim.Optimizer:
    parameters = list(parameters)
    groups = [{"params": parameters[::2], "lr": 0.02}, {"params": parameters[1::2], "weight_decay": 0.1}]
    return torch.optim.AdamW(groups, lr=0.01, amsgrad=True, foreach=False)


# Name -> config of LoRA, optimizer, arguments of the scheduler, options of the Trainer, built before the fit
VARIANTS: dict[str, tuple[dict[str, Any], Callable[..., Any], dict[str, Any], dict[str, Any], bool]] = {
    "adamw": ({}, adamw, {}, {}, False),
    "prebuilt-rslora": ({"use_rslora": True}, two_groups, {}, {}, True),
    "dora-accumulate": ({"use_dora": True}, adamw, {}, {"accumulate_grad_batches": 2}, False),
    "sgd-merge": ({}, sgd, {"on_zero": "merge"}, {}, True),
    "freeze-dropout": ({"lora_dropout": 0.1}, adamw, {"on_zero": "freeze"}, {}, False),
    "kfac": ({}, adamw, {"shrink": "kfac"}, {}, False),
    "clip": ({}, adamw, {}, {"gradient_clip_val": 0.1}, True),
    "bf16": ({}, adamw, {}, {"precision": "bf16-true"}, False),
}


def run(folder: Path, variant: str = "adamw", resume_from: Path | None = None, num_epochs: int = 3) -> Any:
    """Train, with a checkpoint after each step; returns all there is to compare."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    torch.set_num_threads(1)
    config, optimizer, arguments, options, is_prebuilt = VARIANTS[variant]
    module = regression(
        LONE,
        network=lambda: mixed(**config),
        optimizer=optimizer,
        scheduler=lambda o: {
            "scheduler": lrs.OneCycleLR(o, max_lr=0.05, total_steps=NUM_STEPS + 1),
            "interval": "step",
        },
    )
    if is_prebuilt:  # as lighter does, from a config
        built = module.configure_optimizers()
        module.configure_optimizers = lambda: built
    ranks = recorder(LONE, lambda t, m: (t.global_step, _ranks(m)))
    noise = recorder(LONE, lambda t, m: torch.manual_seed(t.global_step), "on_train_batch_start")
    checkpoint = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    scheduler = LoraRankScheduler(SCHEDULE, monitor="training_loss", average_over=2, **arguments)
    freezer = Freezer(name_starts_with="h.0.fc.lora_", until_step=4)
    fit = trainer(
        LONE,
        callbacks=[noise, scheduler, freezer, ranks, checkpoint],
        max_epochs=num_epochs,
        enable_checkpointing=True,
        default_root_dir=folder,
        **options,
    )
    loader = ResumableLoader(batches().dataset)
    fit.fit(module, loader, None, **resuming(fit, resume_from))
    saved = torch.load(folder / f"step={fit.global_step}.ckpt", weights_only=True)
    return {
        "weights": saved["state_dict"],
        "optimizer": saved["optimizer_states"],
        "rates": saved["lr_schedulers"],
        "callbacks": {k: v for k, v in saved["callbacks"].items() if "Checkpoint" not in k},
        "ranks": dict(ranks.seen),
    }


def _ranks(module: torch.nn.Module) -> list[int]:
    return [site.factors.rank for site in find_lora_sites(module).values()]


def compare(whole: Any, resumed: Any, step: int) -> None:
    """Equal to the last bit."""
    for part in ("weights", "optimizer", "rates", "callbacks"):
        assert same(whole[part], resumed[part]), (part, step)
    assert set(resumed["ranks"]) >= {k for k in whole["ranks"] if k > step}
    assert all(whole["ranks"][k] == ranks for k, ranks in resumed["ranks"].items())


def test_resuming_from_every_step_gives_the_same_run(tmp_path: Path) -> None:
    """Steps at which ranks change included: weights, optimizer, rates, state of the callback, ranks."""
    whole = run(tmp_path / "whole")
    assert len({tuple(ranks) for ranks in whole["ranks"].values()}) >= 7
    for step in range(1, NUM_STEPS):
        resumed = run(tmp_path / f"from{step}", resume_from=tmp_path / "whole" / f"step={step}.ckpt")
        compare(whole, resumed, step)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "adamw"])
def test_every_variant_resumes_exactly(variant: str, tmp_path: Path) -> None:
    """Two cuts each: right before a change of ranks, and right after one."""
    whole = run(tmp_path / "whole", variant)
    num_steps = max(whole["ranks"])
    for step in (2, 3) if num_steps < NUM_STEPS else (5, 10):
        resumed = run(tmp_path / f"from{step}", variant, tmp_path / "whole" / f"step={step}.ckpt")
        compare(whole, resumed, step)


@pytest.mark.wide
def test_a_new_process_goes_on(tmp_path: Path) -> None:
    """Nothing that matters lives in the process that saved the checkpoint."""
    whole = run(tmp_path / "whole")
    code = (
        "import torch; from pathlib import Path; import tests.callbacks.test_lora_rank_resume as t; "
        f"torch.save(t.run(Path({str(tmp_path / 'rest')!r}), resume_from=Path({str(tmp_path)!r}) / "
        f"'whole' / 'step=9.ckpt'), {str(tmp_path / 'rest.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)

    compare(whole, torch.load(tmp_path / "rest.pt", weights_only=True), 9)
