"""The rate in force is the one that LearningRateMonitor shows, and thawed groups follow any scheduler."""

import logging
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer
from tests.lab import NAMESPACES, batches, first_now, recorder, regression, trainer

RATES: dict[str, dict[str, Any]] = {
    "factor": {"unfreeze_lr_factor": 0.1},
    "absolute": {"unfreeze_lr": 0.003},
    "warm-up": {"unfreeze_lr": 0.004, "warmup_steps": 3},
}


class Foreign:
    """A scheduler outside torch: base rates of its own, one for each group it was built with."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.count = optimizer, 0
        self.base = [group["lr"] for group in optimizer.param_groups]

    def step(self, *_: Any, **__: Any) -> None:
        self.count += 1
        for group, rate in zip(self.optimizer.param_groups, self.base, strict=False):
            group["lr"] = rate * 0.5**self.count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Absolute(Foreign):
    """Writes one rate into all groups, whoever made them, as timm's do without lr_scale."""

    def step(self, *_: Any, **__: Any) -> None:
        self.count += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 * 0.5**self.count


SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: lrs.StepLR(o, 1, 0.5),
    "foreign": Foreign,
    "absolute": Absolute,
    "none": None,
}


def logged(namespace: str, interval: str) -> tuple[Any, list[dict[str, float]], Any]:
    """A logger that keeps learning rates, those, and the monitor."""
    rows: list[dict[str, float]] = []

    class Rows(import_module(f"{namespace}.loggers").Logger):  # type: ignore[misc, name-defined]
        name, version = "rows", 0

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            found = {key: value for key, value in metrics.items() if key.startswith("lr-")}
            rows.extend([found] if found else [])

    return Rows(), rows, import_module(f"{namespace}.callbacks").LearningRateMonitor(interval)


@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("request_", RATES)
@pytest.mark.parametrize("built_from", ["all", "trainable"])
def test_the_monitor_shows_the_rates_of_the_first_step(
    namespace: str, order: str, interval: str, scheduler: str, request_: str, built_from: str
) -> None:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        chosen = [p for p in parameters if p.requires_grad or built_from == "all"]
        return torch.optim.SGD(chosen, lr=0.1)

    plan = None
    if SCHEDULERS[scheduler] is not None:
        plan = lambda o: {"scheduler": SCHEDULERS[scheduler](o), "interval": interval}  # noqa: E731
    module = regression(namespace, optimizer=sgd, scheduler=plan)
    module.lr_scheduler_step = lambda scheduler, metric: scheduler.step()
    logger, rows, monitor = logged(namespace, interval)
    used = recorder(
        namespace,
        lambda t, _: sorted({round(g["lr"], 9) for g in t.optimizers[0].param_groups}),
        "on_before_zero_grad",
    )
    freezer = Freezer(name_starts_with="layer2", until_epoch=1, **RATES[request_])
    callbacks = [freezer, monitor] if order == "ours first" else [monitor, freezer]
    options = {"logger": logger, "log_every_n_steps": 1, "max_epochs": 3}
    trainer(namespace, callbacks=[*callbacks, used], **options).fit(module, batches(), batches())
    in_force = used.seen[::4] if interval == "epoch" else used.seen
    shown = [sorted({round(value, 9) for value in row.values()}) for row in rows]
    assert shown == in_force


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("kind", [Foreign, Absolute])
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_thawed_group_follows_its_home(namespace: str, kind: Any, interval: str) -> None:
    """Of an optimizer that did not know it, under a scheduler that does not either."""

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1)

    module = regression(
        namespace, optimizer=sgd, scheduler=lambda o: {"scheduler": kind(o), "interval": interval}
    )
    module.lr_scheduler_step = lambda scheduler, metric: scheduler.step()
    used = recorder(
        namespace, lambda t, _: [g["lr"] for g in t.optimizers[0].param_groups], "on_before_zero_grad"
    )
    freezer = Freezer(name_starts_with="layer2", until_step=3)
    trainer(namespace, callbacks=[freezer, used], max_epochs=3).fit(module, batches(), batches())
    assert all(len(rates) == 2 and rates[0] == rates[1] for rates in used.seen)
    assert used.seen[-1][0] < 0.1


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("arguments", [{}, {"unfreeze_lr_factor": 0.5}])
def test_a_thaw_at_rate_zero_warns(namespace: str, rate: float, arguments: Any, caplog: Any) -> None:
    """The scheduler of its group gives it none, so what has thawed stands still."""

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        *trunk, last, bias = parameters
        return torch.optim.SGD([{"params": trunk, "lr": rate}, {"params": [last, bias], "lr": 0.1}])

    module = regression(namespace, optimizer=sgd)
    freezer = Freezer(name_starts_with="layer2.", until_step=2, **arguments)
    with caplog.at_level(logging.WARNING, "lighter_freezers"):
        trainer(namespace, callbacks=[freezer]).fit(module, batches(), batches())
    assert ("layer2 thawed, but the learning rate there is 0" in caplog.text) is (rate == 0)
    assert "LR scheduler" not in caplog.text  # there is none


@pytest.mark.parametrize("kind", ["CosineLRScheduler", "StepLRScheduler", "TanhLRScheduler"])
@pytest.mark.parametrize("rate", [{}, {"unfreeze_lr_factor": 0.1}])
def test_thawed_groups_follow_their_home_under_timms_schedulers(kind: str, rate: Any) -> None:
    """The schedulers themselves, per update, over groups that they knew when they were built and others."""
    timm = pytest.importorskip("timm.scheduler", reason="timm is not installed")
    options = {
        "CosineLRScheduler": {"t_initial": 12},
        "StepLRScheduler": {"decay_t": 2, "decay_rate": 0.5},
        "TanhLRScheduler": {"t_initial": 12},
    }[kind]

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1)

    def built(optimizer: Any) -> dict[str, Any]:
        scheduler = getattr(timm, kind)(optimizer, t_in_epochs=False, warmup_t=3, **options)
        return {"scheduler": scheduler, "interval": "step"}

    module = regression(NAMESPACES[0], optimizer=sgd, scheduler=built)
    module.lr_scheduler_step = lambda scheduler, metric: scheduler.step_update(module.global_step)
    used = recorder(
        NAMESPACES[0],
        lambda t, _: [g["lr"] for g in t.optimizers[0].param_groups if g["params"]],
        "on_before_zero_grad",
    )
    freezer = Freezer(name_starts_with="layer2", until_step=3, **rate)
    trainer(NAMESPACES[0], callbacks=[freezer, used], max_epochs=3).fit(module, batches(), batches())
    home, thawed = zip(*used.seen[4:], strict=True)
    assert thawed == pytest.approx([each * rate.get("unfreeze_lr_factor", 1.0) for each in home])
    assert len({*home}) > 3


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_plateau_at_each_step(order: str, accumulate: int) -> None:
    """Lightning steps it after the hooks of a batch: the monitor shows what the next step uses."""
    namespace = "pytorch_lightning"
    logger, rows, monitor = logged(namespace, "step")
    module = regression(namespace)
    used: list[set[float]] = []

    def configure_optimizers() -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        optimizer.register_step_pre_hook(
            lambda o, *_: used.append({group["lr"] for group in o.param_groups if group["params"]})
        )
        plateau = lrs.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)  # each loss is too high
        config = {"scheduler": plateau, "interval": "step", "monitor": "train/batch_loss", "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": config}

    module.configure_optimizers = configure_optimizers
    freezer = Freezer(name_starts_with="layer2.", until_step=1, unfreeze_lr=0.003)
    callbacks = [freezer, monitor] if order == "ours first" else [monitor, freezer]
    options = {"logger": logger, "log_every_n_steps": 1, "accumulate_grad_batches": accumulate}
    trainer(namespace, callbacks=callbacks, max_epochs=2, **options).fit(module, batches(), batches())

    assert len(used) == 8 // accumulate
    assert {0.003} < used[-1]
    shown = [set(row.values()) for row in rows][::accumulate]
    assert all(rates <= each for rates, each in zip(used, shown, strict=True))
