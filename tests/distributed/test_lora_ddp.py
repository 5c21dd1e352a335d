"""LoRA ranks that change under DDP: two gloo processes against each other, one process, and a resumed run."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lighter_freezers import Freezer, LoraRankScheduler
from lighter_freezers.lora.sites import find_lora_sites
from tests.callbacks.test_freezer_resume import same
from tests.distributed.run_ranks import run_ranks
from tests.lab import ResumableLoader, adamw, batches, recorder, regression, resuming, trainer
from tests.lora.lora_lab import mixed

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
]
SCHEDULE = [
    {"step": 1, "rank_pattern": {"wte": 5, "h.0.fc": 6, "conv": 2}},
    {"trigger_loss": 1.0e9, "rank_pattern": {"proj": 6}},
    {"step": 4, "rank_pattern": {"fc": 2, "wte": 0}},
    {"max_wait_iters": 3, "rank_pattern": {"proj": 1}},
    {"step": 6, "rank_pattern": {"wte": 2, "conv": 0, "h.1.fc": 0}},
]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "find_unused": {"find_unused_parameters": True},
    "bucket_view": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
}
NUM_STEPS, CUT = 8, 4


def loader(rank: int, num_ranks: int) -> Any:
    """Micro-batches of four samples: all of them in turn, or every other one for each of two ranks."""
    x, y = next(iter(DataLoader(batches().dataset, batch_size=32)))
    parts = [TensorDataset(x[i : i + 4], y[i : i + 4]) for i in range(rank * 4, 32, num_ranks * 4)]
    joined = torch.utils.data.ConcatDataset(parts)
    resumable = ResumableLoader.__new__(ResumableLoader)
    DataLoader.__init__(resumable, joined, batch_size=4)
    resumable._num_given = 0
    return resumable


def fit(
    options: str, num_ranks: int, folder: Path, resume_from: Path | None = None, **how: Any
) -> dict[str, Any]:
    """Train for two epochs of four steps; all there is to compare."""
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.strategies import DDPStrategy

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"]) if num_ranks > 1 else 0
    module = regression("pytorch_lightning", network=mixed, optimizer=adamw)
    torch.manual_seed(rank)  # nothing may hang on the global generator
    with_ddp: dict[str, Any] = {"accumulate_grad_batches": 2}
    if num_ranks > 1:
        with_ddp = {"strategy": DDPStrategy(process_group_backend="gloo", **OPTIONS[options]), "devices": 2}
    seen = recorder(
        "pytorch_lightning",
        lambda t, m: (t.global_step, [site.factors.rank for site in find_lora_sites(m).values()]),
        "on_before_optimizer_step",
    )
    names = recorder("pytorch_lightning", lambda t, m: [id(p) for p in m.parameters()])
    scheduler = LoraRankScheduler(SCHEDULE, monitor="training_loss", average_over=2, **how)
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    freezer = Freezer(name_starts_with="network.h.1.fc.lora_", windows=[[2, 5]])
    run = trainer(
        "pytorch_lightning",
        callbacks=[scheduler, freezer, seen, names, saver],
        max_epochs=2,
        enable_checkpointing=True,
        default_root_dir=folder,
        **with_ddp,
    )
    run.fit(module, loader(rank, num_ranks), None, **resuming(run, resume_from))
    return {
        "weights": dict(module.state_dict()),
        "optimizer": run.optimizers[0].state_dict()["state"],
        "ranks": dict(seen.seen),
        "num_identities": len({tuple(ids) for ids in names.seen}),
    }


def fit_all(folder: Path) -> dict[str, dict[str, Any]]:
    """What each rank does: one fit after the other in the same pair of processes."""
    results = {options: fit(options, 2, folder / options) for options in OPTIONS}
    cut = folder / "plain" / f"step={CUT}.ckpt"
    results["resumed"] = fit("plain", 2, folder / "resumed", cut)
    results["kfac"] = fit("plain", 2, folder / "kfac", shrink="kfac", on_zero="freeze")
    return results


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(fit_all, folder, 2, folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fit("plain", 1, tmp_path_factory.mktemp("alone"))


@pytest.mark.wide
@pytest.mark.parametrize("options", OPTIONS)
def test_two_ranks_equal_one_process(two_ranks: Any, alone: dict[str, Any], options: str) -> None:
    """Weights, moments and ranks, bit for bit, with whatever flags DDP has; parameters stay themselves."""
    first, second = (rank[options] for rank in two_ranks)

    assert same(first, second)
    assert len({tuple(ranks) for ranks in alone["ranks"].values()}) >= 5
    assert first["ranks"] == alone["ranks"]
    assert same(first["weights"], alone["weights"])
    assert same(first["optimizer"], alone["optimizer"])
    assert first["num_identities"] == 1


@pytest.mark.wide
def test_what_each_process_has_seen_is_put_together(two_ranks: Any) -> None:
    """Loss-aware shrinking listens to the batches of one process; ranks agree all the same."""
    first, second = (rank["kfac"] for rank in two_ranks)

    assert same(first, second)
    assert not same(first["weights"], two_ranks[0]["plain"]["weights"])


@pytest.mark.wide
def test_the_resumed_run_is_the_same(two_ranks: Any) -> None:
    """Cut at a step at which ranks change."""
    for rank in two_ranks:
        assert same(rank["resumed"]["weights"], rank["plain"]["weights"])
        assert same(rank["resumed"]["optimizer"], rank["plain"]["optimizer"])
        assert set(rank["resumed"]["ranks"]) == {step for step in rank["plain"]["ranks"] if step >= CUT}
