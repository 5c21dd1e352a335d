"""What follows a hold depends on who holds, not on flags that change, nor on the order of callbacks."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations
from lighter_freezers.engine.rules import FreezeRule, active_rules_of
from lighter_freezers.engine.triggers import Moment, Schedule
from lighter_freezers.selection.select import ParameterSelector
from lighter_freezers.selection.tied_weights import TiedWeights
from tests.callbacks.block_net import BlockNet
from tests.lab import NormNet, TinyNet, adamw, batches, recorder, regression, trainer

LONE = "pytorch_lightning"


def seen_at_each_step(
    callbacks: list[Any],
    read: Callable[[Any, Any], Any],
    network: Callable[[], nn.Module] = TinyNet,
    prepare: Callable[[Any], object] = lambda module: None,
    max_epochs: int = 2,
) -> tuple[Any, list[Any]]:
    """Train four steps an epoch; returns the module, and what was read after each step."""
    module = regression(LONE, network, adamw)
    prepare(module.network)
    seen = recorder(LONE, read)
    trainer(LONE, callbacks=[*callbacks, seen], max_epochs=max_epochs).fit(module, batches(), batches())
    return module, seen.seen


def state_of_layer2(fit: Any, module: Any) -> str:
    """Whether the optimizer knows a weight, and has state of it."""
    weight = module.network.layer2.weight
    [optimizer] = fit.optimizers
    is_known = any(each is weight for group in optimizer.param_groups for each in group["params"])
    return ("state" if weight in optimizer.state else "no state") if is_known else "unknown"


@pytest.mark.parametrize("states", [("keep", "reset"), ("keep", "free"), ("keep", "reset", "free")])
def test_optimizer_state_in_any_order(states: tuple[str, ...]) -> None:
    runs = []
    for order in permutations(states):
        callbacks = [
            Freezer(name_starts_with="layer2", windows=[[2, 5]], optimizer_state=state) for state in order
        ]
        module, seen = seen_at_each_step(callbacks, state_of_layer2)
        runs.append((seen, module.network.layer2.weight.detach()))
    strictest = {"reset": "no state", "free": "unknown"}[states[-1]]
    for seen, weight in runs:
        assert seen == ["state"] * 2 + [strictest] * 3 + ["state"] * 3
        assert torch.equal(weight, runs[0][1])


def test_a_hold_that_changes_no_flag_drops_the_state() -> None:
    """`reset` counts from the step at which its holder begins, though another holds already."""
    callbacks = [
        Freezer(name_starts_with="layer2", windows=[[1, 7]]),
        Freezer(name_starts_with="layer2", windows=[[3, 5]], optimizer_state="reset"),
        Freezer(name_starts_with="layer2", windows=[[5, 6]], optimizer_state="free"),
    ]
    _, seen = seen_at_each_step(callbacks, state_of_layer2)
    assert seen == ["state"] * 3 + ["no state"] * 2 + ["unknown", "no state", "state"]


def test_a_norm_that_the_user_froze_stands_still_while_it_is_held() -> None:
    def by_hand(network: Any) -> None:
        network.backbone[1].requires_grad_(False)

    _, seen = seen_at_each_step(
        [Freezer(name_starts_with="backbone.1.", windows=[[2, 5]])],
        lambda _, module: module.network.backbone[1].running_mean.tolist(),
        NormNet,
        by_hand,
    )
    assert seen[1] == seen[2] == seen[3] == seen[4]
    assert len({tuple(each) for each in (seen[0], seen[1], seen[5], seen[6])}) == 4


@pytest.mark.parametrize(
    ("optimizer_state", "expected"), [("keep", "state"), ("reset", "no state"), ("free", "unknown")]
)
def test_operations_say_what_becomes_of_the_state(optimizer_state: Any, expected: str) -> None:
    operations = [
        {"name": "freeze_layer", "value": "layer2", "max_wait_iters": 2},
        {"name": "unfreeze_layer", "value": "layer2", "max_wait_iters": 3},
    ]
    callback = LayerOperations(operations, optimizer_state=optimizer_state, cut_gradient="never")
    _, seen = seen_at_each_step([callback], state_of_layer2)
    assert seen == ["state"] * 2 + [expected] * 3 + ["state"] * 3
    [action] = callback.actions()
    assert action.terms.cut_gradient == "never"


def test_what_waits_to_thaw_is_in_no_group() -> None:
    def num_known(fit: Any, _: Any) -> int:
        return sum(len(group["params"]) for group in fit.optimizers[0].param_groups)

    callback = GradualUnfreezing(every_n_epochs=1, optimizer_state="free")
    module, seen = seen_at_each_step([callback], num_known, BlockNet, max_epochs=5)
    total = len(list(module.parameters()))
    assert seen[0] < seen[4] < seen[8] < seen[16] == total


def test_a_parameter_that_passes_from_one_holder_to_another_has_not_changed() -> None:
    """A Freezer releases it at the step at which an operation freezes it."""
    transitions = []

    class Listener(Freezer):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            from lighter_freezers.engine.engine import Engine

            super().setup(trainer, pl_module, stage)
            Engine.of(trainer).add_listener(self)

        def on_transition(self, trainer: Any, pl_module: Any, transition: Any) -> None:
            transitions.append((transition.optimizer_step, transition.frozen, transition.thawed))

    operations = [{"name": "freeze_layer", "value": "layer2", "max_wait_iters": 3}]
    _, seen = seen_at_each_step(
        [Listener(name_starts_with="layer2", until_step=3), LayerOperations(operations)], state_of_layer2
    )
    assert seen == ["no state"] * 8
    assert transitions[1:] == [(3, (), ())]  # an operation was done, and nothing froze or thawed


def test_an_operation_looks_no_layer_up_during_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding layers by name takes ten times as long as the transition itself."""
    from lighter_freezers.layers.operations import layer_holds

    looked_up = []
    find = layer_holds.parameters_of_layers
    monkeypatch.setattr(
        layer_holds, "parameters_of_layers", lambda *given: (looked_up.append(given[1]), find(*given))[1]
    )
    operations = [
        {"name": name, "value": "layer2", "max_wait_iters": 1} for name in ("freeze_layer", "unfreeze_layer")
    ]
    _, seen = seen_at_each_step([LayerOperations(operations)], lambda *_: len(looked_up))
    assert seen == [seen[0]] * 8


def test_a_release_that_is_due_counts_already() -> None:
    """Rates may be read after the step that ends a hold, and before the release."""
    selector = ParameterSelector(prefixes=("head",))
    (active,) = active_rules_of([FreezeRule("freezer", selector, Schedule(until_step=5))])
    active.bind(TiedWeights(TinyNet()))
    active.follow(Moment(0, 0))

    assert active.released_by(Moment(4, 0)) is None
    assert active.released_by(Moment(5, 0)) == 5
