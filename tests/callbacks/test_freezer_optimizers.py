"""What thaws trains, at the learning rate asked for, however the optimizer was built and scheduled."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer, LayerOperations
from tests.lab import NAMESPACES, TinyNet, adamw, batches, recorder, regression, sgd, trainer

LONE = "pytorch_lightning"
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda o: None,
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda step: 0.9**step),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, max_lr=0.2, total_steps=20),
    "StepLR": lambda o: lrs.StepLR(o, 2, 0.5),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 8, eta_min=0.01),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=10.0),
    "SequentialLR": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1), lrs.CosineAnnealingLR(o, 8)], [3]),
}


def only_trainable(parameters: Any) -> torch.optim.Optimizer:
    return sgd([parameter for parameter in parameters if parameter.requires_grad])


def scheduled(name: str) -> Callable[[Any], Any] | None:
    if name == "none":
        return None
    return lambda o: {"scheduler": SCHEDULERS[name](o), "interval": "step", "monitor": "train/batch_loss"}


def rates(module: Any, parameter: nn.Parameter) -> float:
    """The learning rate of the group that a parameter is in."""
    groups = module.optimizers().param_groups
    return next(float(g["lr"]) for g in groups if any(parameter is p for p in g["params"]))


def fit_and_read(
    freezer: Freezer, scheduler: str, build: Any = sgd
) -> tuple[list[tuple[float, float]], list[bool]]:
    """Per optimizer step: rates of the head and of layer2 when the step is made, and whether layer2 moved."""
    module = regression(LONE, optimizer=build, scheduler=scheduled(scheduler))
    weight = module.network.layer2.weight
    seen: list[tuple[float, float]] = []
    weights = [weight.detach().clone()]
    at_step = recorder(
        LONE,
        lambda _, m: seen.append((rates(m, m.network.head.weight), rates(m, weight))),
        "on_before_zero_grad",
    )
    after = recorder(LONE, lambda *_: weights.append(weight.detach().clone()))
    trainer(LONE, callbacks=[freezer, at_step, after], max_epochs=2).fit(module, batches(), batches())
    moved = [not torch.equal(old, new) for old, new in zip(weights, weights[1:], strict=False)]
    return seen, moved


@pytest.mark.parametrize("build", [sgd, adamw, only_trainable])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_thaws_trains_under_every_scheduler(build: Any, scheduler: str) -> None:
    """With the rate of its relatives, also where the optimizer was built without it."""
    seen, moved = fit_and_read(Freezer(name_starts_with="layer2", until_step=3), scheduler, build)

    assert moved == [False] * 3 + [True] * 5
    assert all(head == layer for head, layer in seen)


@pytest.mark.parametrize("build", [sgd, only_trainable])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_absolute_rate_persists(build: Any, scheduler: str) -> None:
    """From the thaw on the group has the rate asked for, whatever the scheduler writes."""
    freezer = Freezer(name_starts_with="layer2", until_step=3, unfreeze_lr=1e-3)
    seen, moved = fit_and_read(freezer, scheduler, build)

    assert [layer for _, layer in seen[3:]] == [1e-3] * 5
    assert moved == [False] * 3 + [True] * 5


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_factor_follows_the_scheduler(scheduler: str) -> None:
    """A tenth of what the rest of the group has, at every step; with a warm-up over four steps."""
    freezer = Freezer(name_starts_with="layer2", until_step=3, unfreeze_lr_factor=0.1, warmup_steps=4)
    seen, _ = fit_and_read(freezer, scheduler)
    plain, _ = fit_and_read(Freezer(name_starts_with="layer2", until_step=3), scheduler)

    assert [head for head, _ in seen] == [head for head, _ in plain]
    ramp = [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [layer for _, layer in seen[3:]] == pytest.approx(
        [r * 0.1 * head for r, (head, _) in zip(ramp, seen[3:], strict=True)]
    )


def test_the_update_has_the_rate_asked_for() -> None:
    """Plain SGD: the weight moves by rate times gradient, by hand."""
    module = regression(LONE, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    weight = module.network.layer2.weight
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    before = recorder(
        LONE,
        lambda *_: steps.append((weight.detach().clone(), weight.grad.clone())),
        "on_before_optimizer_step",
    )
    freezer = Freezer(name_starts_with="layer2.bias", until_step=1)
    other = Freezer(name_starts_with="layer2.weight", windows=[[50, 60]], unfreeze_lr_factor=0.5)
    trainer(LONE, callbacks=[freezer, other, before], max_epochs=1).fit(module, batches(), batches())

    for (weight_now, gradient), (weight_next, _) in zip(steps, steps[1:], strict=False):
        assert torch.allclose(weight_next, weight_now - 0.5 * gradient, atol=1e-7)


def test_a_lighter_optimizer_that_was_built_before_any_hook() -> None:
    """LighterModule gets its optimizer from YAML, with every parameter in it."""
    lighter = pytest.importorskip("lighter")

    class Model(lighter.LighterModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.training_step(batch, batch_idx)

    network = TinyNet()
    optimizer = adamw(network.parameters())
    before = network.layer2.weight.detach().clone()
    moved = recorder(LONE, lambda *_: not torch.equal(before, network.layer2.weight))
    module = Model(network, optimizer=optimizer, scheduler=lrs.LambdaLR(optimizer, lambda step: 0.9**step))
    freezer = Freezer(name_starts_with="layer2", until_step=2, unfreeze_lr_factor=0.5)
    trainer(LONE, callbacks=[freezer, moved]).fit(module, batches(), batches())

    assert moved.seen == [False, False, True, True]


def test_a_missing_parameter_may_be_refused() -> None:
    """`optimizer_params: error`."""
    freezer = Freezer(name_starts_with="layer2", until_step=3, optimizer_params="error")
    with pytest.raises(
        RuntimeError, match="will thaw layer2.weight|network.layer2.weight.*no optimizer knows them"
    ):
        trainer(LONE, callbacks=[freezer]).fit(
            regression(LONE, optimizer=only_trainable), batches(), batches()
        )


@pytest.mark.parametrize("state", ["keep", "reset"])
def test_optimizer_state_of_what_freezes(state: Any) -> None:
    """Frozen in steps 2 and 3 of 6: Adam's own count says what it remembers."""
    module = regression(LONE, optimizer=adamw)
    freezer = Freezer(name_starts_with="layer2", windows=[[2, 4]], optimizer_state=state)
    fit = trainer(LONE, callbacks=[freezer], max_steps=6, max_epochs=-1)
    fit.fit(module, batches(), batches())

    assert fit.optimizers[0].state[module.network.layer2.weight]["step"] == (4 if state == "keep" else 2)
    assert fit.optimizers[0].state[module.network.head.weight]["step"] == 6


@pytest.mark.parametrize("set_to_none", [True, False])
def test_momentum_and_weight_decay_do_not_move_what_is_frozen(set_to_none: bool) -> None:
    """Frozen from step 3 on, with `zero_grad(set_to_none=False)` too: bit-equal from then on."""
    module = regression(LONE)
    module.optimizer_zero_grad = lambda epoch, batch_idx, optimizer: optimizer.zero_grad(
        set_to_none=set_to_none
    )
    weights = recorder(LONE, lambda _, m: m.network.layer2.weight.detach().clone())
    trainer(LONE, callbacks=[Freezer(name_starts_with="layer2", from_step=3), weights], max_epochs=2).fit(
        module, batches(), batches()
    )

    assert all(torch.equal(weights.seen[2], weight) for weight in weights.seen[3:])
    assert not torch.equal(weights.seen[1], weights.seen[2])


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_several_optimizers_under_manual_optimisation(namespace: str) -> None:
    """Steps of both optimizers count; what thaws trains with the optimizer of its relatives."""

    class Two(import_module(namespace).LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.one, self.two = TinyNet(), TinyNet()

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer, network in zip(self.optimizers(), (self.one, self.two), strict=True):
                optimizer.zero_grad()
                self.manual_backward(nn.functional.mse_loss(network(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [
                sgd([p for p in network.parameters() if p.requires_grad]) for network in (self.one, self.two)
            ]

    module = Two()
    before = module.two.layer2.weight.detach().clone()
    moved = recorder(namespace, lambda *_: not torch.equal(before, module.two.layer2.weight))
    freezer = Freezer(name_starts_with="two.layer2", until_step=4, unfreeze_lr=0.01)
    fit = trainer(namespace, callbacks=[freezer, moved])
    fit.fit(module, batches())

    assert moved.seen == [False, False, True, True]
    assert [len(optimizer.param_groups) for optimizer in fit.optimizers] == [1, 3]


def test_a_learning_rate_monitor_names_the_group(tmp_path: Path) -> None:
    """Lightning's monitor shows the rate in force under the Freezer's name."""
    from pytorch_lightning.callbacks import LearningRateMonitor
    from pytorch_lightning.loggers import CSVLogger

    logged: dict[str, list[float]] = {}

    class Memory(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            for key, value in metrics.items():
                logged.setdefault(key, []).append(float(value))

    freezer = Freezer(name_starts_with="layer2", until_step=2, unfreeze_lr=0.001)
    fit = trainer(
        LONE, callbacks=[freezer, LearningRateMonitor("step")], logger=Memory(tmp_path), log_every_n_steps=1
    )
    fit.fit(regression(LONE), batches(), batches())

    assert logged["lr-SGD/Freezer layer2 until step 2 - 1"][2:] == [0.001, 0.001]
    assert logged["lr-SGD/pg1"] == [0.05] * 4


def test_a_foreign_thaw_is_undone_before_the_optimizer_sees_it() -> None:
    """`LightningModule.unfreeze()` in mid-run: bit-equal, one warning, and it trains once released."""
    module = regression(LONE)
    module.network.layer2.weight.requires_grad_(False)  # the user's own wish, before
    module.on_train_batch_start = lambda batch, batch_idx: module.unfreeze() if batch_idx == 1 else None
    weights = recorder(LONE, lambda _, m: m.network.layer2.weight.detach().clone())
    freezer = Freezer(name_starts_with="layer2", until_step=3)
    with pytest.warns(UserWarning, match="Something else set requires_grad=True on network.layer2") as caught:
        trainer(LONE, callbacks=[freezer, weights]).fit(module, batches(), batches())

    assert len([w for w in caught if "Something else" in str(w.message)]) == 1
    assert all(torch.equal(weights.seen[0], weight) for weight in weights.seen[:3])
    assert module.network.layer2.weight.requires_grad


class Rateless(torch.optim.Optimizer):
    """Computes its rate from the step, as A2Grad does: its groups have none."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.num_steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        self.num_steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad / self.num_steps)
        return loss


@pytest.mark.parametrize("is_filtered", [False, True])
def test_an_optimizer_without_rates(is_filtered: bool) -> None:
    """Freezes and thaws; a rate is refused before the first step, with the way out."""

    def build(parameters: Any) -> Rateless:
        return Rateless([p for p in parameters if p.requires_grad or not is_filtered])

    module = regression("pytorch_lightning", optimizer=build)
    seen = recorder("pytorch_lightning", lambda _, m: m.network.layer2.weight.detach().clone())
    freezer = Freezer(name_starts_with="layer2.", until_step=2)
    trainer("pytorch_lightning", callbacks=[freezer, seen]).fit(module, batches(), batches())
    assert torch.equal(seen.seen[0], seen.seen[1])
    assert not torch.equal(seen.seen[1], seen.seen[2])

    operation = {"name": "scale_lr", "value": 0.5, "max_wait_iters": 1}
    for rated in (
        Freezer(name_starts_with="layer2.", until_step=2, warmup_steps=3),
        LayerOperations([operation], monitor="training_loss"),
    ):
        module = regression("pytorch_lightning", optimizer=build)
        with pytest.raises(ValueError, match="Rateless has no learning rate in its groups. Remove that"):
            trainer("pytorch_lightning", callbacks=[rated]).fit(module, batches(), batches())
