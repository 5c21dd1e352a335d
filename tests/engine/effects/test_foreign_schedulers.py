"""Schedulers outside torch, with lists of their own for each group, beside groups that thawed layers get."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from lighter_freezers import Freezer
from tests.lab import NAMESPACES, batches, recorder, regression, trainer


class Strict:
    """Insists on the groups that it was built with, and keeps the optimizer's own list of them."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.groups, self.count = optimizer, optimizer.param_groups, 0
        self.base = [group["lr"] for group in optimizer.param_groups]

    def step(self) -> None:
        self.count += 1
        for group, rate in zip(self.groups, self.base, strict=True):
            group["lr"] = rate * 0.5**self.count
            group["weight_decay"] = 0.01 * self.count

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("optimizer", "groups")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class ToFloor(lrs.LRScheduler):
    """Derived from torch's, with a floor for each group under a name of its own."""

    def __init__(self, optimizer: Any) -> None:
        self.floors = [group["lr"] * 0.01 for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        both = zip(self.base_lrs, self.floors, strict=True)
        return [floor + (base - floor) * 0.5**self.last_epoch for base, floor in both]


class Warm(lrs.LRScheduler):
    """A warm-up, then another scheduler that torch's `_schedulers` does not list."""

    def __init__(self, optimizer: Any) -> None:
        self.after = lrs.ReduceLROnPlateau(optimizer, patience=0)
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return [base * (self.last_epoch + 1) / 3 for base in self.base_lrs]

    def step(self, *_: Any) -> None:
        if self.last_epoch < 2:
            super().step()
        else:
            self.after.step(1.0)


KINDS: dict[str, Any] = {
    "strict": Strict,
    "derived from torch's": ToFloor,
    "around another": Warm,
    "part of torch's": lambda o: lrs.SequentialLR(o, [ToFloor(o), lrs.StepLR(o, 1, 0.5)], [5]),
}


def fitted(
    kind: Any, builds_all: bool, rate: dict[str, Any], namespace: str = NAMESPACES[0], **run: Any
) -> Any:
    """The Trainer, and at each step the groups that have parameters."""

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in parameters if builds_all or p.requires_grad], lr=0.1)

    module = regression(
        namespace, optimizer=sgd, scheduler=lambda o: {"scheduler": kind(o), "interval": "step"}
    )
    module.lr_scheduler_step = lambda scheduler, metric: scheduler.step()
    used = recorder(
        namespace,
        lambda t, _: [
            (each["lr"], each["weight_decay"]) for each in t.optimizers[0].param_groups if each["params"]
        ],
        "on_before_zero_grad",
    )
    path = run.pop("ckpt_path", None)
    fit = trainer(
        namespace, callbacks=[Freezer(name_starts_with="layer2", until_step=3, **rate), used], **run
    )
    fit.fit(module, batches(), batches(), ckpt_path=path)
    return fit, used.seen


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("builds_all", [True, False])
def test_what_thaws_follows_its_home(namespace: str, kind: str, builds_all: bool) -> None:
    """Its rate and whatever else such a scheduler writes, times the factor; the home as without a Freezer."""
    _, seen = fitted(KINDS[kind], builds_all, {"unfreeze_lr_factor": 0.1}, namespace, max_epochs=2)
    _, alone = fitted(KINDS[kind], True, {}, namespace, max_epochs=2)
    assert [home for home, _ in seen] == [home for (home,) in alone]
    assert [thawed for _, thawed in seen[4:]] == [(pytest.approx(lr * 0.1), wd) for (lr, wd), _ in seen[4:]]
    assert len({lr for (lr, _), _ in seen}) > 3


def test_a_scheduler_keeps_its_state_and_its_entries(tmp_path: Any) -> None:
    """Cut in mid-run it goes on alike; what it saves is what it saves without a Freezer."""
    rate = {"unfreeze_lr_factor": 0.1}
    for kind in (Strict, ToFloor):
        fit, _ = fitted(kind, False, rate, max_steps=5)
        scheduler = fit.lr_scheduler_configs[0].scheduler
        assert isinstance(scheduler, kind)
        assert len(pickle.loads(pickle.dumps(scheduler.state_dict())).get("base", [0])) == 1
        fit.save_checkpoint(tmp_path / "cut.ckpt")
        assert fitted(kind, False, rate, max_steps=8)[1][5:] == resumed(kind, rate, tmp_path / "cut.ckpt")


def resumed(kind: Any, rate: Any, path: Any) -> Any:
    return fitted(kind, False, rate, max_steps=8, ckpt_path=path)[1]


def test_a_scheduler_without_a_class_of_its_own_is_refused() -> None:
    """Its methods cannot be kept to its groups."""

    def bare(optimizer: Any) -> Any:
        return SimpleNamespace(
            optimizer=optimizer, step=lambda: None, state_dict=dict, load_state_dict=lambda _: None
        )

    with pytest.raises(ValueError, match=r"SimpleNamespace is no scheduler of torch.*Give the optimizer all"):
        fitted(bare, False, {})
    assert fitted(bare, True, {}, max_epochs=1)[1]
