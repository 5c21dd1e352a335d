"""Frozen means bit-equal under any optimizer, or the run is refused: torch's, and popular ones outside."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion

from lighter_freezers import BlockCycling, FreezeOut, Freezer
from tests.lab import NAMESPACES, batches, recorder, regression, sgd, trainer

STATES = ("keep", "reset", "free")
MID_RUN = [[3, 7]]
TORCH = ["ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam"]
TORCH += ["RAdam", "RMSprop", "Rprop", "SGD"]
OUTSIDE: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> module, class, arguments
    "AdamW8bit": ("bitsandbytes.optim", "AdamW8bit", {"min_8bit_size": 1}),
    "Lion8bit": ("bitsandbytes.optim", "Lion8bit", {"min_8bit_size": 1}),
    "Lion": ("lion_pytorch", "Lion", {}),
    "Prodigy": ("prodigyopt", "Prodigy", {}),
    "AdamWScheduleFree": ("schedulefree", "AdamWScheduleFree", {}),
    "SGDScheduleFree": ("schedulefree", "SGDScheduleFree", {"lr": 0.1, "momentum": 0.9}),
    "ScheduleFreeSGD": ("pytorch_optimizer", "ScheduleFreeSGD", {}),
    "Adafactor of transformers": ("transformers.optimization", "Adafactor", {}),
    "CAME": ("came_pytorch", "CAME", {"lr": 1e-3}),
    "DAdaptAdam": ("dadaptation", "DAdaptAdam", {}),
    "SOAP": ("pytorch_optimizer", "SOAP", {}),
    "Shampoo": ("pytorch_optimizer", "Shampoo", {}),
    "Ranger21": ("pytorch_optimizer", "Ranger21", {"num_iterations": 50}),
    "LBFGS of pytorch_optimizer": ("pytorch_optimizer", "LBFGS", {"max_iter": 2}),
    "Tiger": ("pytorch_optimizer", "Tiger", {}),
    "Adan": ("pytorch_optimizer", "Adan", {}),
    "AdEMAMix": ("pytorch_optimizer", "AdEMAMix", {}),
    "GrokFastAdamW": ("pytorch_optimizer", "GrokFastAdamW", {}),
}


def only_matrices(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Muon([p for p in parameters if p.ndim == 2])


def of_torch(name: str) -> Callable[[Any], torch.optim.Optimizer]:
    options = {"lr": 0.1, "max_iter": 3} if name == "LBFGS" else {}
    return only_matrices if name == "Muon" else lambda p: getattr(torch.optim, name)(p, **options)


class Lookahead(torch.optim.Optimizer):
    """Every two steps the weights go halfway to a slow copy, with a gradient or without one."""

    def __init__(self, parameters: Any) -> None:
        self.inner = sgd(parameters)
        super().__init__(self.inner.param_groups, {})
        self.param_groups = self.inner.param_groups
        self.slow: dict[Any, torch.Tensor] = {}
        self.count = 0

    def step(self, closure: Any = None) -> Any:
        loss = self.inner.step(closure)
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.slow.setdefault(p, p.detach().clone())
                if self.count % 2 == 0:
                    slow.lerp_(p.detach(), 0.5)
                    p.data.copy_(slow)
        return loss


class BareWrapper(Lookahead):
    """A wrapper that does not initialise its base class, as those of pytorch_optimizer."""

    def __init__(self, parameters: Any) -> None:
        self.inner = sgd(parameters)
        self.defaults, self.state = self.inner.defaults, self.inner.state
        self.param_groups = self.inner.param_groups
        self.slow, self.count = {}, 0


class Sam(torch.optim.Optimizer):
    """Looks at the gradient in a worse place nearby, by a second closure, and goes back to step."""

    def __init__(self, parameters: Any) -> None:
        self.base = sgd(parameters)
        super().__init__(self.base.param_groups, {})
        self.param_groups = self.base.param_groups

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            everyone = [p for group in self.param_groups for p in group["params"]]
            old = {p: p.clone() for p in everyone}
            for p in everyone:
                p.add_(p.grad.sign() if p.grad is not None else p.sign(), alpha=0.01)
        closure()
        with torch.no_grad():
            for p, value in old.items():
                p.copy_(value)
        self.base.step()
        return loss


class SophiaLike(torch.optim.Optimizer):
    """Momentum by an average of squared gradients, clipped."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for p in self.param_groups[0]["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            state.setdefault("m", torch.zeros_like(p))
            state.setdefault("h", torch.ones_like(p))
            state["m"].lerp_(p.grad, 0.1)
            state["h"].lerp_(p.grad.square(), 0.1)
            p.mul_(0.999).sub_((state["m"] / state["h"]).clamp(-1, 1), alpha=0.01)
        return loss


def accelerated(parameters: Any) -> torch.optim.Optimizer:
    """As accelerate prepares it, without initialising torch's class either."""
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare_optimizer(sgd(parameters))


class BoundLike(torch.optim.SGD):
    """Steps the groups by the rates they were built with, as AdaBound does, and no other group."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.05)
        self.base_lrs = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for group, base in zip(self.param_groups, self.base_lrs, strict=False):
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.05 * group["lr"] / base)
        return loss


def modes(namespace: str) -> Any:
    """Tells schedule-free optimizers when training begins and ends, as their documents ask for."""

    class Modes(import_module(namespace).Callback):  # type: ignore[misc, name-defined]
        def _put(self, trainer: Any, mode: str) -> None:
            for optimizer in trainer.optimizers:
                getattr(optimizer, mode, lambda: None)()

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self._put(trainer, "train")

        def on_validation_start(self, trainer: Any, module: Any) -> None:
            self._put(trainer, "eval")

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            self._put(trainer, "train")

    return Modes()


def frozen_and_thawed(
    namespace: str, build: Any, state: Any, names: Any = ("layer2", "layer1."), **rate: Any
) -> tuple[list[bool], list[bool]]:
    """Whether the weights moved: from step to step while they were frozen, and after the thaw."""
    module = regression(namespace, optimizer=build)
    weight = module.network.layer1.weight
    values: list[tuple[bool, torch.Tensor]] = []
    note = recorder(namespace, lambda *_: values.append((weight.requires_grad, weight.detach().clone())))
    freezer = Freezer(name_starts_with=list(names), windows=MID_RUN, optimizer_state=state, **rate)
    callbacks = [modes(namespace), freezer, note]
    trainer(namespace, callbacks=callbacks, max_epochs=3).fit(module, batches(), batches())
    moved = [not torch.equal(old, new) for (_, old), (_, new) in zip(values, values[1:], strict=False)]
    frozen = [move for move, (flag, _) in zip(moved, values[1:], strict=True) if not flag]
    return frozen, moved[len(moved) - 5 :]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", TORCH)
def test_under_every_optimizer_of_torch(name: str, state: str) -> None:
    """A layer frozen in mid-run stands still to the bit and then goes on; LBFGS cannot free it."""
    if name == "LBFGS" and state == "free":
        with pytest.raises(RuntimeError, match="LBFGS remembers all"):
            frozen_and_thawed("pytorch_lightning", of_torch(name), state)
        return
    if name == "Adagrad" and state != "keep" and TorchVersion(torch.__version__) < "2.12":
        with pytest.raises(RuntimeError, match=r"Adagrad cannot make anew before torch 2\.12"):
            frozen_and_thawed("pytorch_lightning", of_torch(name), state)
        return
    names = ("layer2.weight", "layer1.weight") if name == "Muon" else ("layer2", "layer1.")
    frozen, after = frozen_and_thawed("pytorch_lightning", of_torch(name), state, names)
    assert frozen == [False] * 4
    assert any(after)


def momentum(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1, **options)


@pytest.mark.parametrize("rate", [{}, {"unfreeze_lr_factor": 0.5}], ids=str)
@pytest.mark.parametrize("windows", [[[0, 3]], [[3, 7]], [[0, 2], [5, 8]]], ids=str)
@pytest.mark.parametrize("state", STATES)
def test_fused_momentum_begins_at_a_thaw_as_any_other(state: Any, windows: Any, rate: Any) -> None:
    """Its kernel refuses parameters without momentum beside others."""
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        module = regression(NAMESPACES[0], optimizer=partial(momentum, fused=fused))
        freezer = Freezer(name_starts_with=["layer2"], windows=windows, optimizer_state=state, **rate)
        trainer(NAMESPACES[0], callbacks=[freezer], max_epochs=3).fit(module, batches(), batches())
        ends.append(list(module.parameters()))
    for plain, fast in zip(*ends, strict=True):
        torch.testing.assert_close(plain, fast)


def test_fused_momentum_with_a_dampening_is_refused() -> None:
    """Only where something thaws into a group that has momentum."""
    build = partial(momentum, fused=True, dampening=0.5)
    for freezer in (
        Freezer(names="head.bias"),
        Freezer(names="head.bias", from_step=5),
        Freezer(names="head.bias", until_step=5, unfreeze_lr_factor=0.5),
        FreezeOut(6, every_n_steps=2, blocks=["layer1", "layer2", "layer10"]),
    ):
        run = trainer(NAMESPACES[0], callbacks=[freezer], max_epochs=3)
        run.fit(regression(NAMESPACES[0], optimizer=build), batches(), batches())
    refusal = r"SGD\(fused=True\) with momentum and dampening .* fused=False"
    with pytest.raises(ValueError, match=refusal):
        frozen_and_thawed(NAMESPACES[0], build, "keep")
    cycling = BlockCycling(3, "ascending", blocks=["layer1", "layer2", "layer10"], rest="train")
    with pytest.raises(ValueError, match=refusal):  # at the change of blocks: only then it is known
        trainer(NAMESPACES[0], callbacks=[cycling], max_epochs=3).fit(
            regression(NAMESPACES[0], optimizer=build), batches(), batches()
        )


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("names", [("layer1.",), ("layer2.", "layer1."), ("layer1.weight", "head.bias")])
def test_the_history_of_lbfgs_ends_at_a_freeze(namespace: str, names: Any) -> None:
    """Whatever parameter comes first: the history stands with that one only."""
    build = lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, line_search_fn="strong_wolfe")  # noqa: E731
    frozen, _ = frozen_and_thawed(namespace, build, "keep", names)
    assert frozen == [False] * 4


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("wrapper", [Lookahead, Sam, accelerated])
@pytest.mark.parametrize("rate", [{}, {"unfreeze_lr": 0.01}])
def test_what_a_wrapper_moves_is_put_back(namespace: str, wrapper: Any, rate: Any) -> None:
    frozen, after = frozen_and_thawed(namespace, wrapper, "keep", **rate)
    assert frozen == [False] * 4
    assert any(after)


def test_rates_under_a_wrapper_that_takes_no_hooks() -> None:
    """The optimizer inside has the rate asked for at each of its steps, in a warm-up too."""
    rates = []

    def build(parameters: Any) -> torch.optim.Optimizer:
        wrapper = accelerated(parameters)
        wrapper.optimizer.register_step_post_hook(
            lambda inner, *_: rates.append(inner.param_groups[-1]["lr"])
        )
        return wrapper

    frozen_and_thawed(NAMESPACES[0], build, "keep", unfreeze_lr=0.02, warmup_steps=2)

    assert rates == [0.05] * 7 + [0.01] + [0.02] * 4


@pytest.mark.parametrize("rate", [{"unfreeze_lr": 0.01}, {"unfreeze_lr_factor": 0.5}], ids=str)
def test_a_group_beyond_the_rates_that_an_optimizer_keeps_trains(rate: dict[str, float]) -> None:
    frozen, after = frozen_and_thawed(NAMESPACES[0], BoundLike, "keep", **rate)
    assert frozen == [False] * 4
    assert all(after)


def test_rows_under_a_wrapper_that_takes_no_hooks_are_refused() -> None:
    freezer = Freezer(names="layer2.weight", rows="2:")
    with pytest.raises(RuntimeError, match="AcceleratedOptimizer tells nothing.*Return the inner optimizer"):
        trainer(NAMESPACES[0], callbacks=[freezer]).fit(
            regression(NAMESPACES[0], optimizer=accelerated), batches(), batches()
        )


class Split(torch.optim.Optimizer):
    """Steps a list of optimizers, one for each kind of parameter."""

    def __init__(self, parameters: Any) -> None:
        parameters = list(parameters)
        self.parts = [sgd([p for p in parameters if (p.ndim == 1) == is_bias]) for is_bias in (False, True)]
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        for part in self.parts:
            part.step()
        return loss


@pytest.mark.parametrize("wrapper", [Lookahead, BareWrapper, accelerated, Split])
@pytest.mark.parametrize("state", ["reset", "free"])
def test_the_state_of_a_wrapper_cannot_be_dropped(state: str, wrapper: Any) -> None:
    with pytest.raises(RuntimeError, match=f"'{state}' drops .* wraps another .*'keep'"):
        frozen_and_thawed("pytorch_lightning", wrapper, state)


@pytest.mark.parametrize("state", STATES)
def test_under_an_optimizer_like_sophia(state: str) -> None:
    frozen, after = frozen_and_thawed("pytorch_lightning", SophiaLike, state)
    assert frozen == [False] * 4
    assert any(after)


@pytest.mark.wide
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.filterwarnings("ignore")
def test_under_popular_optimizers_outside_torch(name: str, state: str) -> None:
    """8-bit, sign, schedule-free, second-order and parameter-free ones; each where it is installed."""
    module, kind, options = OUTSIDE[name]
    found = pytest.importorskip(module, reason=f"{name} needs {module}")
    build = lambda p: getattr(found, kind)(p, **options)  # noqa: E731
    if "LBFGS" in name and state == "free":
        pytest.skip("refused by name, as torch's is")
    frozen, after = frozen_and_thawed("pytorch_lightning", build, state)
    assert frozen == [False] * 4
    assert any(after)
