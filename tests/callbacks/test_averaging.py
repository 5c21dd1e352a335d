"""Averaging callbacks beside ours: what is frozen stays exactly what it is, or the run is refused."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_avg_fn

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, LoraPhases, apply_lora
from tests.lab import NAMESPACES, WIDTH, NormNet, TinyNet, batches, recorder, regression, trainer
from tests.lora.lora_lab import mixed

SWA = {"swa_lrs": 0.01, "swa_epoch_start": 2}


def averaging(namespace: str, kind: str, **options: Any) -> Any:
    return getattr(import_module(f"{namespace}.callbacks"), kind)(**options)


class Pretrained(NormNet):
    """Batch norms that have seen data before."""

    def __init__(self) -> None:
        super().__init__()
        for norm in (self.backbone[1], self.backbone[3]):
            norm.running_mean.copy_(torch.arange(WIDTH) / 7)
            norm.running_var.copy_(torch.arange(WIDTH) / 3 + 0.1)
            norm.num_batches_tracked.fill_(12345)


def adapted() -> nn.Module:
    return apply_lora(TinyNet(), {"r": 4, "target_modules": ["layer1"]})


def statistics(module: Any) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in module.network.backbone.buffers()]


def fit(
    namespace: str, callbacks: list[Any], network: Callable[[], nn.Module] = Pretrained, **options: Any
) -> Any:
    module = regression(namespace, network)
    options = {"max_epochs": 4, **options}
    trainer(namespace, callbacks=callbacks, **options).fit(module, batches(), batches())
    return module


def ordered(order: str, ours: Any, theirs: Any) -> list[Any]:
    return [ours, theirs] if order == "ours first" else [theirs, ours]


FREEZERS: dict[str, Callable[[], Any]] = {
    "whole run": lambda: Freezer(name_starts_with="backbone."),
    "until the end": lambda: Freezer(name_starts_with="backbone.", until_epoch=4),
    "statistics": lambda: Freezer(name_starts_with="backbone.", frozen_norms="stats"),
    "operation": lambda: LayerOperations(
        [{"name": "freeze_layer", "value": "backbone", "max_wait_iters": 0}], monitor="training_loss"
    ),
}


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize(
    ("kind", "options"), [("StochasticWeightAveraging", SWA), ("EMAWeightAveraging", {"decay": 0.99})]
)
@pytest.mark.parametrize("freezer", FREEZERS)
def test_a_held_backbone_is_the_same_after_averaging(
    namespace: str, order: str, kind: str, options: dict[str, Any], freezer: str
) -> None:
    """Weights and running statistics, to the bit; the head is the average."""
    before = regression(namespace, Pretrained)
    callbacks = ordered(order, FREEZERS[freezer](), averaging(namespace, kind, **options))
    module = fit(namespace, callbacks)

    if freezer != "operation":  # it acts when the first step is done
        for name, parameter in module.network.backbone.named_parameters():
            assert torch.equal(parameter, before.network.backbone.get_parameter(name))
        for got, expected in zip(statistics(module), statistics(before), strict=True):
            assert torch.equal(got, expected)
    assert not torch.equal(module.network.head.weight, before.network.head.weight)
    assert module.network.backbone[1].momentum == 0.1


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize(
    ("kind", "options"), [("StochasticWeightAveraging", SWA), ("EMAWeightAveraging", {"decay": 0.99})]
)
def test_adapters_outside_all_phases_are_the_same_after_averaging(
    order: str, kind: str, options: dict[str, Any]
) -> None:
    """Of four layers two have a phase; the others keep their values to the bit, and these are averaged."""
    lone = "pytorch_lightning"
    before = dict(regression(lone, mixed).named_parameters())
    phases = [{"start_step": 0, "active_modules": "wte"}, {"start_step": 6, "active_modules": "proj"}]
    callbacks = ordered(order, LoraPhases(phases=phases), averaging(lone, kind, **options))
    after = dict(fit(lone, callbacks, mixed).named_parameters())

    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    adapters = {name for name in after if ".lora_" in name}
    active = {name for name in adapters if ".wte." in name or ".proj." in name}
    assert moved & adapters == active
    assert len(active) == 4 < len(adapters)


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_norms_frozen_in_mid_run_keep_their_statistics(order: str) -> None:
    """Held from epoch 2 on: SWA's extra epoch leaves them as they froze, and re-estimates no others."""
    seen = recorder("pytorch_lightning", lambda _, module: statistics(module))
    freezer = Freezer(name_starts_with="backbone.", from_epoch=2)
    swa = averaging("pytorch_lightning", "StochasticWeightAveraging", **SWA)
    module = fit("pytorch_lightning", [*ordered(order, freezer, swa), seen])

    for got, frozen in zip(statistics(module), seen.seen[8], strict=True):
        assert torch.equal(got, frozen)


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_what_thaws_before_is_estimated_again(order: str) -> None:
    """As without a Freezer: mean and variance of the averaged weights over one epoch, by hand."""
    freezer = Freezer(name_starts_with="backbone.", until_epoch=1)
    swa = averaging("pytorch_lightning", "StochasticWeightAveraging", **SWA)
    module = fit("pytorch_lightning", ordered(order, freezer, swa))
    linear, norm = module.network.backbone[:2]

    means = torch.stack([linear(x).mean(0) for x, _ in batches()])
    assert torch.allclose(norm.running_mean, means.mean(0), atol=1e-6)


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_what_thaws_within_an_epoch_is_averaged(order: str) -> None:
    """From the step of the thaw on, as the rest is: by hand."""
    lone = "pytorch_lightning"
    ema = averaging(lone, "EMAWeightAveraging", decay=0.5)
    weights = recorder(lone, lambda _, m: m.network.backbone[0].weight.detach().clone())
    freezer = Freezer(name_starts_with="backbone.", until_step=2)
    module = fit(lone, [*ordered(order, freezer, ema), weights], max_epochs=1)

    average = weights.seen[0]
    for weight in weights.seen[1:]:
        average = 0.5 * average + 0.5 * weight
    assert not torch.equal(weights.seen[-1], weights.seen[0])
    assert torch.allclose(module.network.backbone[0].weight, average, atol=1.0e-6)


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_nothing_thaws_in_the_extra_epoch(order: str) -> None:
    """It has the number of an epoch that the run does not have."""
    swa = averaging("pytorch_lightning", "StochasticWeightAveraging", **SWA)
    freezer = Freezer(name_starts_with="backbone.", until_epoch=4)
    flags = recorder(
        "pytorch_lightning",
        lambda t, m: (
            t.current_epoch,
            m.network.head.weight.requires_grad,
            m.network.backbone[0].weight.requires_grad,
        ),
    )
    fit("pytorch_lightning", [*ordered(order, freezer, swa), flags])
    assert flags.seen[-1] == (4, True, False)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("kind", ["WeightAveraging", "StochasticWeightAveraging"])
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize("freezer", ["whole run", "mid run"])
def test_an_average_that_rounds(namespace: str, kind: str, order: str, freezer: str) -> None:
    """0.999 w + 0.001 w is not w; what is frozen before averaging begins is w, though."""
    options = {} if kind == "WeightAveraging" else {**SWA, "swa_epoch_start": 3}
    average = averaging(namespace, kind, avg_fn=get_ema_avg_fn(0.999), **options)
    seen = recorder(namespace, lambda _, module: module.network.layer1.weight.clone())
    ours = Freezer(name_starts_with="layer1.", from_epoch=0 if freezer == "whole run" else 1)
    module = fit(namespace, [*ordered(order, ours, average), seen], TinyNet)
    is_average = freezer == "mid run" and kind == "WeightAveraging"
    assert torch.equal(module.network.layer1.weight, seen.seen[-1]) is not is_average


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_a_checkpoint_holds_the_exact_average(order: str, tmp_path: Path) -> None:
    """The saved average of a frozen backbone is the backbone, and a resumed run keeps it."""
    save = averaging(
        "pytorch_lightning", "ModelCheckpoint", dirpath=tmp_path, filename="{step}", every_n_train_steps=3
    )
    freezer = Freezer(name_starts_with="backbone.")
    ema = averaging("pytorch_lightning", "EMAWeightAveraging", decay=0.99)
    fit("pytorch_lightning", [*ordered(order, freezer, ema), save], enable_checkpointing=True, max_epochs=1)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["state_dict"]
    for name, value in regression("pytorch_lightning", Pretrained).state_dict().items():
        assert torch.equal(saved[name], value) is ("backbone" in name)


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize(
    ("kind", "options"), [("StochasticWeightAveraging", SWA), ("EMAWeightAveraging", {"decay": 0.99})]
)
def test_ranks_beside_an_average_are_refused(order: str, kind: str, options: Any) -> None:
    """By operations, too."""
    operation = {"name": "set_layer_lora_rank", "value": ["layer1", 2], "max_wait_iters": 7}
    callbacks = ordered(
        order,
        LayerOperations([operation], monitor="training_loss"),
        averaging("pytorch_lightning", kind, **options),
    )
    with pytest.raises(ValueError, match=f"{kind} averages weights of the shapes"):
        fit(
            "pytorch_lightning",
            callbacks,
            lambda: apply_lora(TinyNet(), {"r": 4, "target_modules": ["layer1"]}),
        )


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("StochasticWeightAveraging", SWA), ("EMAWeightAveraging", {}), ("WeightAveraging", {})],
)
def test_weights_that_are_put_back_are_refused(
    namespace: str, order: str, kind: str, options: dict[str, Any]
) -> None:
    """The best weights of a stage would meet an average of what they replace; stages alone are averaged."""
    stages = [{"thaw": "head", "until_epoch": 1}, {"thaw": "*"}]
    best = GradualUnfreezing(stages=stages, restore_best={"monitor": "val/loss"})
    with pytest.raises(ValueError, match=f"restore_best .* and {kind} goes on averaging"):
        fit(namespace, ordered(order, best, averaging(namespace, kind, **options)))
    fit(namespace, ordered(order, GradualUnfreezing(stages=stages), averaging(namespace, kind, **options)))


class Tokens(nn.Module):
    """Every batch uses all six rows of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table((x.abs() * 2).long().clamp(max=5)).mean(1))


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize(
    ("kind", "options"), [("StochasticWeightAveraging", SWA), ("EMAWeightAveraging", {"decay": 0.99})]
)
@pytest.mark.parametrize("until_epoch", [None, 1])
def test_held_rows_are_the_same_after_averaging(
    order: str, kind: str, options: dict[str, Any], until_epoch: int | None
) -> None:
    """In validation, which runs on the average, and at the end; those that move are averaged."""
    lone = "pytorch_lightning"
    before = regression(lone, Tokens).network.table.weight.detach().clone()
    rows = recorder(lone, lambda t, m: m.network.table.weight.detach().clone(), "on_validation_batch_end")
    freezer = Freezer(names="table.weight", rows="2:", until_epoch=until_epoch)
    callbacks = [*ordered(order, freezer, averaging(lone, kind, **options)), rows]
    after = fit(lone, callbacks, Tokens).network.table.weight

    assert all(torch.equal(each[:2], before[:2]) for each in rows.seen[: 4 if until_epoch else None])
    assert torch.equal(after[:2], before[:2]) is (until_epoch is None)
    assert not torch.isclose(after[2:], before[2:]).all(1).any()
