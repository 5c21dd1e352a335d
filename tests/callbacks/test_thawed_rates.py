"""What thaws grows in its rate as with Lightning's BackboneFinetuning, and has a weight decay of its own."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ExponentialLR

from lighter_freezers import Freezer, GradualUnfreezing
from tests.callbacks.block_net import BlockNet, fit_saving_each_step, part_of
from tests.callbacks.test_freezer_resume import same
from tests.lab import NAMESPACES, batches, recorder, regression, trainer

LONE = "pytorch_lightning"


class WithBackbone(nn.Module):
    """A network that BackboneFinetuning finds in the module by the name `backbone`."""

    def __init__(self) -> None:
        super().__init__()
        net = BlockNet()
        self.head = net.head
        self.layers = nn.Sequential(net.stem, nn.Tanh(), *net.blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x))


def fit(callback: Any, optimizer: Any, *, scheduler: Any = None, is_peer: bool = False) -> Any:
    """Seven epochs; the rate of the backbone in each, and the weights at the end."""
    module = regression(LONE, WithBackbone, optimizer, scheduler)
    if is_peer:
        module.backbone = module.network.layers

        def head_only() -> Any:
            built = optimizer(module.network.head.parameters())
            return {"optimizer": built, "lr_scheduler": scheduler(built)} if scheduler else built

        module.configure_optimizers = head_only
    weight = module.network.layers[0].weight

    def read(run: Any, _: Any) -> float | None:
        groups = [
            group for group in run.optimizers[0].param_groups if any(p is weight for p in group["params"])
        ]
        return groups[0]["lr"] if groups and weight.requires_grad else None

    rates = recorder(LONE, read, "on_before_optimizer_step")
    run = trainer(LONE, callbacks=[callback, rates], max_epochs=7)
    run.fit(module, batches(), batches())
    return rates.seen[::4], {name: value.clone() for name, value in module.network.state_dict().items()}


@pytest.mark.parametrize("growth", [2, 1.1])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"unfreeze_lr_factor": 0.1}),
        ({"backbone_initial_lr": 0.003}, {"unfreeze_lr": 0.003}),
    ],
    ids=["ratio", "rate"],
)
@pytest.mark.parametrize("optimizer", [partial(Adam, lr=0.01), partial(SGD, lr=0.01, momentum=0.9)])
def test_growth_is_that_of_backbone_finetuning(
    theirs: dict[str, Any], ours: dict[str, Any], growth: float, optimizer: Any
) -> None:
    """`lambda_func` multiplies the rate after each epoch until it is that of the head; bit for bit."""
    from pytorch_lightning.callbacks import BackboneFinetuning

    peer = BackboneFinetuning(
        unfreeze_backbone_at_epoch=2, lambda_func=lambda _: growth, verbose=False, **theirs
    )
    freezer = Freezer(name_starts_with="layers.", until_epoch=2, unfreeze_lr_growth=growth, **ours)
    expected, weights = fit(peer, optimizer, is_peer=True)
    rates, found = fit(freezer, optimizer)

    assert expected[:2] == [None, None]
    assert expected[3] == expected[2] * growth
    assert rates == expected
    assert same(found, weights)


def test_growth_ends_at_the_scheduled_rate() -> None:
    """A factor of it, at each step: 0.1, 0.3, 0.9 of what the scheduler says, then all of it."""
    freezer = Freezer(name_starts_with="layers.", until_epoch=1, unfreeze_lr_factor=0.1, unfreeze_lr_growth=3)
    rates, _ = fit(freezer, partial(SGD, lr=1.0), scheduler=partial(ExponentialLR, gamma=0.5))

    assert rates[1:5] == pytest.approx([0.1 * 0.5, 0.3 * 0.25, 0.9 * 0.125, 0.0625])


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* is not empty")
def test_growth_and_decay_go_on_after_a_resume(tmp_path: Path) -> None:
    """The epoch of the thaw, which a metric decided, is in the checkpoint."""

    def run(folder: Path, resume_from: Path | None = None) -> dict[str, Any]:
        freezer = Freezer(
            name_starts_with="blocks.",
            until_metric={"monitor": "val/loss", "below": 1e9},
            unfreeze_lr_factor=0.1,
            unfreeze_lr_growth=2,
            unfreeze_weight_decay=0.5,
        )
        return fit_saving_each_step(freezer, folder, resume_from)

    whole = run(tmp_path / "whole")
    assert sorted({group["weight_decay"] for group in whole["optimizer"]["param_groups"]})[-1] == 0.5
    for step in (3, 6, 9):
        resumed = run(tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert same(resumed["weights"], whole["weights"]), step
        assert same(resumed["optimizer"], whole["optimizer"]), step


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_weight_decay_of_what_thaws(namespace: str) -> None:
    """By a Freezer and in a stage, from the thaw on; the rest keeps that of the optimizer."""
    freezer = Freezer(name_starts_with="stem.", until_step=4, unfreeze_weight_decay=0.0)
    stages = [
        {"thaw": ["head", "norm", "stem"], "until_step": 2},
        {"thaw": "*", "unfreeze_weight_decay": 0.3, "unfreeze_lr_factor": {"blocks.0": 0.5}},
    ]

    def read(run: Any, module: Any) -> dict[str, tuple[float, float]]:
        names = {id(p): part_of(name) for name, p in module.named_parameters() if p.requires_grad}
        groups = run.optimizers[0].param_groups
        return {
            names[id(p)]: (group["lr"], group["weight_decay"])
            for group in groups
            for p in group["params"]
            if id(p) in names
        }

    seen = recorder(namespace, read, "on_before_optimizer_step")
    module = regression(namespace, BlockNet, partial(AdamW, lr=0.01, weight_decay=0.1))
    callbacks = [freezer, GradualUnfreezing(stages=stages), seen]
    trainer(namespace, callbacks=callbacks, max_epochs=2).fit(module, batches(), batches())

    assert seen.seen[1] == {"head": (0.01, 0.1), "norm": (0.01, 0.1)}
    assert seen.seen[-1] == {
        "head": (0.01, 0.1),
        "norm": (0.01, 0.1),
        "stem": (0.01, 0.0),
        "block 0": (0.005, 0.3),
        **{f"block {index}": (0.01, 0.3) for index in (1, 2, 3)},
    }


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"unfreeze_lr_growth": 2.0}, "Give the first rate"),
        ({"unfreeze_lr": 0.1, "unfreeze_lr_growth": 0.0}, "unfreeze_lr_growth must be above 0"),
        ({"unfreeze_weight_decay": -0.1}, "unfreeze_weight_decay must be at least 0"),
    ],
    ids=["alone", "zero", "negative"],
)
def test_what_is_refused(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Freezer(names="network.head.weight", until_step=2, **arguments)
    with pytest.raises(ValueError, match=error):
        GradualUnfreezing(stages=[{"thaw": "head", "until_step": 1}, {"thaw": "*", **arguments}])


def test_an_optimizer_without_weight_decay_is_refused() -> None:
    class Plain(torch.optim.Optimizer):
        """Has a rate, and nothing else."""

        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {"lr": 0.1})

    freezer = Freezer(name_starts_with="stem.", until_step=4, unfreeze_weight_decay=0.0)
    with pytest.raises(ValueError, match="Plain has no weight decay"):
        trainer(LONE, callbacks=[freezer]).fit(regression(LONE, BlockNet, Plain), batches(), batches())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
