"""`optimizer_state: free` in real Trainers: groups and state shrink, schedulers follow, a resume is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer
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
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
]
NUM_STEPS = 12


def free(**options: Any) -> Freezer:
    return Freezer(optimizer_state="free", **options)


def freezers() -> list[Freezer]:
    """Windows, a thaw with a rate of its own, an overlap with one that keeps, one for the whole run."""
    return [
        free(name_starts_with="layer10", windows=[[1, 3], [5, 7], [9, 10]]),
        free(name_starts_with="layer2", until_step=4, unfreeze_lr_factor=0.5, warmup_steps=3),
        Freezer(name_starts_with="layer2", until_step=6),
        free(names="layer1.bias"),
    ]


def in_groups(trainer: Any, module: Any) -> list[str]:
    """Layers of which the optimizer knows anything, and those it remembers something of."""
    names = {id(p): name.split(".")[1] for name, p in module.named_parameters()}
    groups = trainer.optimizers[0].param_groups
    known = sorted({names[id(p)] for group in groups for p in group["params"]})
    return [",".join(known), ",".join(sorted({names[id(p)] for p in trainer.optimizers[0].state}))]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_groups_hold_what_trains(namespace: str) -> None:
    """Step by step; afterwards the groups are whole again."""
    seen = recorder(namespace, in_groups)
    fit = trainer(namespace, callbacks=[*freezers()[:2], seen], max_epochs=2)
    fit.fit(regression(namespace, optimizer=adamw), batches(), batches())

    rest, most = "head,layer1", "head,layer1,layer2"
    whole = "head,layer1,layer10,layer2"
    known = ["head,layer1,layer10", rest, rest, "head,layer1,layer10", whole, most, most, whole]
    assert seen.seen == [[each, each] for each in known]
    assert in_groups(fit, fit.lightning_module)[0] == whole


def run(folder: Path, resume_from: Path | None = None, namespace: str = LONE, named: bool = False) -> Any:
    """Train to the end with a checkpoint after each step; returns all there is to compare."""
    from importlib import import_module

    torch.set_num_threads(1)
    checkpoint = import_module(f"{namespace}.callbacks").ModelCheckpoint(
        dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1
    )

    def scheduled(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {"scheduler": lrs.OneCycleLR(optimizer, 0.05, total_steps=NUM_STEPS + 1), "interval": "step"}

    module = regression(namespace, optimizer=adamw, scheduler=scheduled)
    if named:
        build = torch.optim.AdamW(module.named_parameters(), lr=0.01)
        module.configure_optimizers = lambda: {"optimizer": build, "lr_scheduler": scheduled(build)}
    frozen = recorder(
        namespace, lambda trainer, m: (trainer.global_step, frozen_layers(m), in_groups(trainer, m))
    )
    fit = trainer(
        namespace,
        callbacks=[*freezers(), frozen, checkpoint],
        max_epochs=NUM_STEPS // 4,
        enable_checkpointing=True,
        default_root_dir=folder,
    )
    fit.fit(module, ResumableLoader(batches().dataset), batches(), **resuming(fit, resume_from))
    return {"weights": module.state_dict(), "optimizer": fit.optimizers[0].state_dict(), "seen": frozen.seen}


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, in every nested value."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(("namespace", "named"), [(LONE, False), ("lightning.pytorch", True)])
def test_resuming_from_every_step_gives_the_same_run(namespace: str, named: bool, tmp_path: Path) -> None:
    """Weights, moments, groups, and what is known at each later step."""
    whole = run(tmp_path / "whole", namespace=namespace, named=named)
    assert len({known for _, _, (known, _) in whole["seen"]}) >= 4
    for step in range(1, NUM_STEPS):
        resumed = run(tmp_path / str(step), tmp_path / "whole" / f"step={step}.ckpt", namespace, named)
        assert same(resumed["weights"], whole["weights"]), step
        assert same(resumed["optimizer"], whole["optimizer"]), step
        assert resumed["seen"] == whole["seen"][step:], step


@pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`"
)  # the missing callbacks are the point
def test_a_checkpoint_goes_on_without_the_freezer(tmp_path: Path) -> None:
    """Its layout is that of the optimizer as it was built."""
    fit = trainer(LONE, callbacks=[free(name_starts_with="layer2")])
    fit.fit(regression(LONE, optimizer=adamw), batches(), batches())
    fit.save_checkpoint(tmp_path / "one.ckpt")
    plain = trainer(LONE, max_epochs=2)
    plain.fit(
        regression(LONE, optimizer=adamw),
        batches(),
        batches(),
        **resuming(plain, tmp_path / "one.ckpt"),
    )

    assert {int(state["step"]) for state in plain.optimizers[0].state.values()} == {4, 8}


@pytest.mark.parametrize("scheduler", ["LambdaLR", "OneCycleLR", "SequentialLR"])
def test_a_scheduler_follows(scheduler: str) -> None:
    """All groups go on by the schedule, the empty ones too."""
    build = {
        "LambdaLR": lambda o: lrs.LambdaLR(o, lambda step: 0.5**step),
        "OneCycleLR": lambda o: lrs.OneCycleLR(o, max_lr=0.1, total_steps=9),
        "SequentialLR": lambda o: lrs.SequentialLR(
            o, [lrs.LinearLR(o, 0.1), lrs.CosineAnnealingLR(o, 8)], [3]
        ),
    }[scheduler]
    rates = []
    for state in ("free", "reset"):
        module = regression(
            LONE, optimizer=adamw, scheduler=lambda o: {"scheduler": build(o), "interval": "step"}
        )
        freezer = Freezer(patterns="*", except_name_starts_with="head", until_step=3, optimizer_state=state)
        seen = recorder(LONE, lambda t, _: [group["lr"] for group in t.optimizers[0].param_groups])
        trainer(LONE, callbacks=[freezer, seen], max_epochs=2).fit(module, batches(), batches())
        rates.append((seen.seen, [p.detach() for p in module.parameters()]))

    assert same(rates[0], rates[1])


def test_what_cannot_be_taken_out_is_refused() -> None:
    """LBFGS has one state for all."""
    module = regression(LONE, optimizer=torch.optim.LBFGS)
    with pytest.raises(RuntimeError, match="optimizer_state='free'.*LBFGS remembers all"):
        trainer(LONE, callbacks=[free(name_starts_with="layer2", until_step=2)]).fit(
            module, batches(), batches()
        )
