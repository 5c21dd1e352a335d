"""The preset `fine_tune` has the rates that fastai's has."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam

from lighter_freezers import fine_tune
from tests.callbacks.block_net import BlockNet, part_of
from tests.lab import NAMESPACES, batches, recorder, regression, trainer

LONE = "pytorch_lightning"


def of_fastai(num_steps: int, pct_start: float, values: tuple[float, float, float]) -> list[float]:
    """`combined_cos` of fastai 2.8 (docs.fast.ai/callback.schedule.html): two halves of a cosine."""

    def cos(start: float, end: float, share: float) -> float:
        return start + (1 + math.cos(math.pi * (1 - share))) * (end - start) / 2

    first, middle, last = values
    shares = [step / num_steps for step in range(num_steps)]
    return [
        cos(first, middle, share / pct_start)
        if share < pct_start
        else cos(middle, last, (share - pct_start) / (1 - pct_start))
        for share in shares
    ]


def fit(namespace: str, optimizer: Any, num_epochs: int, **arguments: Any) -> list[dict[str, Any]]:
    """The rate, and momentum, of what trains in each part at each step."""

    def read(fit: Any, module: Any) -> dict[str, tuple[float, float | None]]:
        names = {id(p): part_of(name) for name, p in module.named_parameters() if p.requires_grad}
        return {
            names[id(p)]: (group["lr"], group["betas"][0] if "betas" in group else group.get("momentum"))
            for group in fit.optimizers[0].param_groups
            for p in group["params"]
            if id(p) in names
        }

    rates = recorder(namespace, read, "on_before_optimizer_step")
    run = trainer(namespace, callbacks=[fine_tune(**arguments), rates], max_epochs=num_epochs)
    run.fit(regression(namespace, BlockNet, optimizer), batches(), batches())
    return rates.seen


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_rates_at_each_step_are_those_of_fastai(namespace: str) -> None:
    """One epoch at `slice(2e-3)`, two at `slice(1e-3 / 100, 1e-3)`, of which each layer is a group."""
    seen = fit(namespace, lambda parameters: Adam(parameters, lr=0.5), 3)

    head = of_fastai(4, 0.99, (2e-3 / 25, 2e-3, 2e-3 / 1e5)) + of_fastai(8, 0.3, (1e-3 / 5, 1e-3, 1e-3 / 1e5))
    momenta = of_fastai(4, 0.99, (0.95, 0.85, 0.95)) + of_fastai(8, 0.3, (0.95, 0.85, 0.95))
    assert [set(each) for each in seen[:4]] == [{"head"}] * 4
    assert [each["head"] for each in seen] == [
        pytest.approx(pair, rel=1e-9) for pair in zip(head, momenta, strict=True)
    ]
    depths = ["stem", "block 0", "block 1", "block 2", "block 3", "head"]
    factors = [0.01 * 100 ** (depth / 5) for depth in range(6)]  # even_mults(0.01, 1, 6)
    for step in range(4, 12):
        found = [seen[step][part][0] for part in depths]
        assert found == pytest.approx([head[step] * factor for factor in factors], rel=1e-9)


def test_figures_that_fastai_prints() -> None:
    """Recorded from `Learner.fine_tune(2, freeze_epochs=1)` of fastai 2.8.12, four steps in an epoch."""
    seen = fit(LONE, lambda parameters: Adam(parameters, lr=0.5), 3)

    recorded = [8e-05, 0.0003665840813, 0.001055231251, 0.001734784662, 0.0002, 0.0004964723699]
    recorded += [0.000946410149, 0.0009719419529, 0.0008117468044, 0.0005559866982, 0.0002830653119]
    assert [each["head"][0] for each in seen] == pytest.approx([*recorded, 7.664711266e-05], rel=1e-6)


def test_other_arguments_and_an_optimizer_without_momentum() -> None:
    """What has none gets none."""
    arguments = {"freeze_epochs": 2, "base_lr": 0.1, "lr_mult": 10, "pct_start": 0.5, "div": 2.0}
    seen = fit(LONE, lambda parameters: SGD(parameters, lr=0.5), 3, **arguments)

    head = of_fastai(8, 0.99, (0.1 / 25, 0.1, 0.1 / 1e5)) + of_fastai(4, 0.5, (0.025, 0.05, 0.05 / 1e5))
    assert [each["head"] for each in seen] == [(pytest.approx(rate), 0) for rate in head]
    assert [each["stem"][0] for each in seen[8:]] == pytest.approx([rate / 10 for rate in head[8:]])


@pytest.mark.parametrize(
    ("argument", "value"),
    [("freeze_epochs", 0), ("base_lr", 0.0), ("lr_mult", 0.5), ("pct_start", 1.0), ("div", 0.1)],
)
def test_what_is_out_of_range(argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=argument):
        fine_tune(**{argument: value})


@pytest.mark.parametrize("value", [[0.1], [0.1, 0.0], [0.1, 0.2, 0.3]], ids=str)
def test_two_factors_are_those_of_the_lowest_and_the_highest_layer(value: list[float]) -> None:
    from lighter_freezers import GradualUnfreezing

    stages = [{"thaw": "head", "until_step": 3}, {"thaw": "*", "unfreeze_lr_factor": value}]
    with pytest.raises(ValueError, match=r"stages\[1\]: unfreeze_lr_factor"):
        GradualUnfreezing(stages=stages)


def test_lighter_builds_it_from_yaml(tmp_path: Path) -> None:
    """Without `_mode_: callable`, as any callback."""
    from lighter.engine.runner import ConfigLoader

    path = tmp_path / "config.yaml"
    path.write_text(
        """
trainer:
  _target_: pytorch_lightning.Trainer
  logger: false
  enable_checkpointing: false
  callbacks: [{_target_: lighter_freezers.fine_tune, freeze_epochs: 2, base_lr: 1.0e-2}]
"""
    )
    found = ConfigLoader.load([str(path)]).resolve("trainer").callbacks
    assert [repr(each) for each in found if "lighter_freezers" in type(each).__module__] == [
        "GradualUnfreezing(2 stages)"
    ]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
