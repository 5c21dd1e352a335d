"""The schedules under real Trainers, next to a Freezer that thaws the trunk, and resumed in mid-run."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer
from lighter_freezers.gpt.lr_schedules import (
    AdaptiveScheduler,
    TransferLearningScheduler,
    WarmupOnlyScheduler,
    trunk_and_head_groups,
)
from tests.lab import NAMESPACES, WIDTH, ResumableLoader, batches, recorder, resuming, trainer

LONE = "pytorch_lightning"
both = pytest.mark.parametrize("namespace", NAMESPACES)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # each resumed run has its own folder
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty"),
]
NUM_STEPS, THAW = 12, 5  # three epochs of four batches
PLAN: dict[str, Any] = {
    "base_lr": 0.01,
    "warmup_iters": 2,
    "feature_extraction_iters": THAW,
    "unfreeze_lr_drop": 0.5,
    "max_iters": 11,
}
Scheduling = Callable[[torch.optim.Optimizer], dict[str, Any]]


class TwoParts(nn.Module):
    """A trunk of two layers, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({"lower": nn.Linear(WIDTH, WIDTH), "upper": nn.Linear(WIDTH, WIDTH)})
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.transformer["lower"](x))
        return self.head(torch.tanh(self.transformer["upper"](hidden)))


def module(namespace: str, scheduling: Scheduling) -> Any:
    """A LightningModule over `TwoParts` with AdamW over trunk and head."""

    class Regression(import_module(namespace).LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = TwoParts()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.mse_loss(self.network(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", 1.0)  # never better than the first time

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(trunk_and_head_groups(self.network, weight_decay=0.01), lr=0.3)
            return {"optimizer": optimizer, "lr_scheduler": scheduling(optimizer)}

    return Regression()


def transfer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"scheduler": TransferLearningScheduler(optimizer, **PLAN), "interval": "step"}


def rates(network: TwoParts, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rate that each layer's weight has in force."""
    layers = {
        "lower": network.transformer["lower"],
        "upper": network.transformer["upper"],
        "head": network.head,
    }
    return {
        name: float(group["lr"])
        for name, layer in layers.items()
        for group in optimizer.param_groups
        if any(layer.weight is p for p in group["params"])
    }


def run(
    scheduling: Scheduling,
    freezers: list[Freezer],
    folder: Path | None = None,
    resume_from: Path | None = None,
    namespace: str = LONE,
) -> tuple[dict[int, dict[str, float]], Any]:
    """The rates in force in each optimizer step, and the optimizer's state in the end."""
    seen: dict[int, dict[str, float]] = {}
    at_step = recorder(
        namespace,
        lambda fit, m: seen.__setitem__(fit.global_step, rates(m.network, fit.optimizers[0])),
        "on_before_zero_grad",  # within the optimizer's step, behind the Freezer's last word
    )
    callbacks = [*freezers, at_step]
    if folder is not None:
        checkpoint = import_module(f"{namespace}.callbacks").ModelCheckpoint
        callbacks.append(checkpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1))
    fit = trainer(namespace, callbacks=callbacks, max_epochs=3, enable_checkpointing=folder is not None)
    loader = ResumableLoader(batches().dataset)
    fit.fit(module(namespace, scheduling), loader, batches(), **resuming(fit, resume_from))
    return seen, fit.optimizers[0].state_dict()


def planned(step: int, trunk_factor: float = 1.0) -> dict[str, float]:
    plan = TransferLearningScheduler(**PLAN).get_lr(step)
    return {
        "lower": plan["transformer"] * trunk_factor,
        "upper": plan["transformer"],
        "head": plan["head"],
    }


@both
def test_trunk_and_head_have_the_rates_of_the_plan_at_each_step(namespace: str) -> None:
    """From the very step that thaws the trunk on; nothing is warned of."""
    freezer = Freezer(name_starts_with="transformer", until_step=THAW)
    seen, _ = run(transfer, [freezer], namespace=namespace)

    assert seen == {step: planned(step) for step in range(NUM_STEPS)}
    assert [seen[step]["upper"] for step in (THAW - 1, THAW)] == [0.0, 0.005]
    assert seen[THAW]["head"] == 0.1


def split_freezers() -> list[Freezer]:
    """The lower layer thaws later than the upper one, at half its rate, in a group that is split off."""
    return [
        Freezer(name_starts_with="transformer", until_step=THAW),
        Freezer(name_starts_with="transformer.lower", until_step=8, unfreeze_lr_factor=0.5),
    ]


def test_a_group_that_a_freezer_splits_off_follows_the_trunk() -> None:
    """Half of the trunk's rate once it thaws; the rest as planned."""
    seen, state = run(transfer, split_freezers())

    assert [seen[step] for step in range(8, NUM_STEPS)] == [
        planned(step, 0.5) for step in range(8, NUM_STEPS)
    ]
    assert [seen[step]["upper"] for step in range(8)] == [planned(step)["upper"] for step in range(8)]
    assert [group["part"] for group in state["param_groups"]] == ["trunk", "trunk", "head", "head"] + [
        "trunk"
    ] * 2


def test_an_optimizer_that_does_not_know_the_whole_trunk_yet() -> None:
    """What is missing gets a group that has the rate of the trunk."""

    def build(namespace: str, scheduling: Scheduling) -> Any:
        built = module(namespace, scheduling)

        def configure_optimizers() -> Any:
            groups = trunk_and_head_groups(built.network)
            groups[0]["params"] = [p for p in groups[0]["params"] if p.requires_grad]
            optimizer = torch.optim.AdamW(groups)
            return {"optimizer": optimizer, "lr_scheduler": scheduling(optimizer)}

        built.configure_optimizers = configure_optimizers
        return built

    built = build(LONE, transfer)
    seen: list[dict[str, float]] = []
    at_step = recorder(
        LONE, lambda fit, m: seen.append(rates(m.network, fit.optimizers[0])), "on_before_zero_grad"
    )
    freezer = Freezer(name_starts_with="transformer.lower", until_step=THAW)
    with pytest.warns(UserWarning, match="The trunk trains at a learning rate of 0"):
        trainer(LONE, callbacks=[freezer, at_step], max_epochs=3).fit(built, batches(), batches())

    assert seen == [planned(step) for step in range(NUM_STEPS)]


def warmup_only(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"scheduler": WarmupOnlyScheduler(optimizer, warmup_iters=3, max_iters=11), "interval": "step"}


def adaptive(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    scheduler = AdaptiveScheduler(optimizer, initial_lr=0.1, patience=1, warmup_iters=5)
    return {"scheduler": scheduler, "interval": "epoch", "monitor": "val/loss"}


@both
def test_a_warm_up_and_a_line_in_a_trainer(namespace: str) -> None:
    """All groups alike; what a Freezer splits off has half of it."""
    seen, _ = run(warmup_only, split_freezers(), namespace=namespace)
    alone = WarmupOnlyScheduler(learning_rate=0.3, warmup_iters=3, max_iters=11)

    assert [seen[step]["head"] for step in range(NUM_STEPS)] == [alone.get_lr(s) for s in range(NUM_STEPS)]
    assert [seen[step]["upper"] for step in range(NUM_STEPS)] == [alone.get_lr(s) for s in range(NUM_STEPS)]
    assert [seen[s]["lower"] for s in range(8, NUM_STEPS)] == [
        0.5 * alone.get_lr(s) for s in range(8, NUM_STEPS)
    ]


@both
def test_an_adaptive_rate_in_a_trainer(namespace: str) -> None:
    """The loss of each epoch's validation is the same: halved after the second, in mid-warm-up too."""
    seen, _ = run(adaptive, split_freezers(), namespace=namespace)
    ramp = [min(1.0, (step + 1) / 6) for step in range(NUM_STEPS)]
    expected = [0.1 * r for r in ramp[:8]] + [0.05 * r for r in ramp[8:]]

    assert [seen[step]["head"] for step in range(NUM_STEPS)] == pytest.approx(expected)
    assert [seen[step]["lower"] for step in range(8, NUM_STEPS)] == pytest.approx([0.025] * 4)


def adaptive_every_four_batches(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Lightning passes over metrics at the end of an epoch that it resumed in the middle, but not so."""
    return {**adaptive(optimizer), "interval": "step", "frequency": 4}


@pytest.mark.parametrize("scheduling", [transfer, warmup_only, adaptive_every_four_batches])
def test_a_resumed_run_has_the_same_rates_to_the_last_bit(scheduling: Scheduling, tmp_path: Path) -> None:
    """Cut before, at and after the thaw, and in a warm-up; the optimizer's state in the end too."""
    whole, state = run(scheduling, split_freezers(), tmp_path / "whole")
    for step in (1, 3, THAW, 7, 10):
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        resumed, resumed_state = run(scheduling, split_freezers(), tmp_path / f"from{step}", checkpoint)

        assert resumed == {s: row for s, row in whole.items() if s >= step}
        assert resumed_state["param_groups"] == state["param_groups"]
        assert all(
            torch.equal(value, resumed_state["state"][index][key])
            for index, moments in state["state"].items()
            for key, value in moments.items()
        )


@both
def test_an_adaptive_rate_needs_a_metric(namespace: str) -> None:
    """Lightning asks for it, as for a `ReduceLROnPlateau`."""
    with pytest.raises(Exception, match="must include a monitor"):
        run(
            lambda optimizer: {"scheduler": AdaptiveScheduler(optimizer, initial_lr=0.1)},
            [],
            namespace=namespace,
        )


YAML = """
model:
  _target_: lighter_freezers.GPTModule
  network:
    _target_: lighter_freezers.GPT
    config: {vocab_size: 32, block_size: 8, n_layer: 1, n_head: 1, n_embd: 8, tie_weights: false}
  optimizer:
    _target_: torch.optim.AdamW
    params:
      _target_: lighter_freezers.gpt.lr_schedules.trunk_and_head_groups
      model: "@model::network"
      weight_decay: 0.1
  scheduler:
    _target_: lighter_freezers.gpt.lr_schedules.TransferLearningScheduler
    optimizer: "@model::optimizer"
    base_lr: 5.0e-5
    warmup_iters: 0
    feature_extraction_iters: 2
"""


def test_lighter_builds_it_from_yaml(tmp_path: Path) -> None:
    """Groups, optimizer and scheduler of one model, and the Trainer follows."""
    from lighter.engine.runner import ConfigLoader

    path = tmp_path / "model.yaml"
    path.write_text(YAML)
    built = ConfigLoader.load([str(path)]).resolve("model")
    seen: list[list[float]] = []
    at_step = recorder(
        LONE,
        lambda fit, _: seen.append([group["lr"] for group in fit.optimizers[0].param_groups]),
        "on_before_zero_grad",
    )
    tokens = torch.arange(8).repeat(16, 1)
    rows = [{"input_ids": row, "targets": row, "num_bytes": torch.tensor(8)} for row in tokens]
    freezer = Freezer(name_starts_with="transformer", until_step=2)
    fit = trainer(LONE, callbacks=[freezer, at_step], max_steps=4, max_epochs=-1)
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    fit.fit(built, loader, loader)

    assert [group["name"] for group in fit.optimizers[0].param_groups] == ["trunk", "trunk-vectors", "head"]
    assert seen == [[0.0, 0.0, 5e-4]] * 2 + [[pytest.approx(5e-6)] * 2 + [5e-4]] * 2
