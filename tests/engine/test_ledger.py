"""The ledger: who holds what, what a release restores, and changes of flags by other code."""

import gc

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer
from lighter_freezers.engine import ledger, ledger_records
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.rules import active_rules_of, follow_all
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.selection.tied_weights import TiedWeights


def parameters(number: int = 3, requires_grad: bool = True) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2), requires_grad=requires_grad) for _ in range(number)]


def test_a_parameter_is_frozen_while_anyone_holds_it() -> None:
    """Two overlapping holds: it thaws when the last is released, in any order."""
    (shared,) = parameters(1)
    first, second = Hold([shared], "first"), Hold([shared], "second")
    first.take()
    second.take()
    first.let_go()

    assert not shared.requires_grad
    assert ledger.holders(shared) == ("second",)
    assert second.let_go() == [shared]
    assert shared.requires_grad


@pytest.mark.parametrize("windows", [((0, 4), (4, 8)), ((4, 8), (0, 4))])
def test_a_hold_that_takes_over_flips_nothing(windows: tuple[tuple[int, int], ...]) -> None:
    """At the step at which one rule releases and another holds, in either order."""
    model = nn.Linear(2, 2)
    rules = [rule for window in windows for rule in Freezer(patterns="*", windows=[window]).rules()]
    active = active_rules_of(rules)
    for each in active:
        each.bind(TiedWeights(model))
    follow_all(active, Moment(0, 0))
    with ledger.flips() as flips:
        follow_all(active, Moment(4, 1))

    assert flips.num_noted == 0
    assert not model.weight.requires_grad


def test_what_the_user_froze_stays_frozen() -> None:
    """A release gives back the flag that was found, not True."""
    (mine,) = parameters(1, requires_grad=False)
    hold = Hold([mine], "freezer")

    assert hold.take() == []
    assert ledger.is_user_frozen(mine)
    assert hold.let_go() == []
    assert not mine.requires_grad


def test_integer_tensors_are_left_alone() -> None:
    """An int8 weight cannot require gradients; holding it is harmless."""
    quantised = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    hold = Hold([quantised], "freezer")
    hold.take()
    hold.let_go()
    ledger.thaw([quantised], "user")

    assert not quantised.requires_grad


def test_holding_clears_the_gradient() -> None:
    """A gradient from before the freeze could still be applied once."""
    (parameter,) = parameters(1)
    parameter.grad = torch.ones(2)
    Hold([parameter], "freezer").take()

    assert parameter.grad is None


def test_holding_twice_is_holding_once() -> None:
    """`take` and `let_go` are idempotent, and so are `hold` and `release`."""
    (parameter,) = parameters(1)
    hold = Hold([parameter], "freezer")
    assert hold.take() == [parameter]
    assert hold.take() == []
    ledger.hold([parameter], "user")
    ledger.hold([parameter], "user")
    hold.let_go()
    assert not parameter.requires_grad

    assert ledger.release([parameter], "user") == [parameter]
    assert ledger.release([parameter], "user") == []


def test_a_flag_set_between_two_holds_is_the_new_baseline() -> None:
    """The user freezes a layer after a release; the next hold gives back that."""
    (parameter,) = parameters(1)
    hold = Hold([parameter], "freezer")
    hold.take()
    hold.let_go()
    parameter.requires_grad = False
    hold.take()

    assert hold.let_go() == []
    assert not parameter.requires_grad


def test_a_flag_switched_on_during_a_hold_is_the_new_baseline() -> None:
    """It is frozen again at once, and trains when the hold ends, though it did not before."""
    (parameter,) = parameters(1, requires_grad=False)
    hold = Hold([parameter], "freezer")
    hold.take()
    parameter.requires_grad = True
    parameter.grad = torch.ones(2)

    assert ledger.reassert([parameter]) == [parameter]
    assert not parameter.requires_grad
    assert parameter.grad is None
    assert hold.let_go() == [parameter]


def test_an_abandoned_hold_leaves_the_flag_and_remembers_the_baseline() -> None:
    """The second run of a model that the first left frozen can thaw it."""
    (parameter,) = parameters(1)
    first = Hold([parameter], "first run")
    first.take()
    first.abandon()
    assert not parameter.requires_grad
    assert not ledger.is_held(parameter)
    assert not ledger.is_user_frozen(parameter)

    second = Hold([parameter], "second run")
    second.take()
    assert second.let_go() == [parameter]


def test_a_hold_follows_its_parameters_to_their_successors() -> None:
    """FSDP2 replaces parameters by shards; baseline and hold move along."""
    old, new = parameters(2), parameters(2, requires_grad=False)
    hold = Hold(old, "freezer")
    hold.take()
    moved = hold.moved_to(new)

    assert [ledger.holders(parameter) for parameter in new] == [("freezer",)] * 2
    assert moved.let_go() == new


def test_what_is_frozen_by_hand_outlasts_every_hold() -> None:
    """Frozen by hand, before or during a hold, a parameter stays so when it is released, until a thaw."""
    for is_held in (False, True):
        layer = nn.Linear(2, 2)
        layer(torch.ones(1, 2)).sum().backward()
        hold = Hold([layer.weight], "Freezer")
        if is_held:
            hold.take()
        frozen = ledger.freeze([layer.weight, layer.bias])
        assert [id(p) for p in frozen] == [id(p) for p in layer.parameters()][is_held:]
        assert (layer.weight.grad, layer.bias.grad) == (None, None)
        hold.take()
        assert hold.let_go() == []
        assert ledger.is_user_frozen(layer.weight)
        assert ledger.thaw([layer.weight], "x") == [layer.weight]


def test_who_comes_back_is_not_the_user() -> None:
    """Frozen and left, a parameter counts as one that can train; frozen by hand after that, it does not."""
    layer = nn.Linear(2, 2)
    ledger.freeze([layer.weight], is_left=True)
    assert not layer.weight.requires_grad
    assert not ledger.is_user_frozen(layer.weight)
    ledger.freeze([layer.weight])
    assert ledger.is_user_frozen(layer.weight)


def test_thaw_overrules_the_user_but_not_another_holder() -> None:
    """`unfreeze_layer` makes a user-frozen parameter trainable; a Freezer's hold outlasts it."""
    frozen, held = parameters(2, requires_grad=False)
    hold = Hold([held], "freezer")
    hold.take()

    assert ledger.thaw([frozen, held], "unfreeze_layer") == [frozen]
    assert not held.requires_grad
    assert hold.let_go() == [held]


@pytest.mark.parametrize("watched", [0, 63])
def test_a_gradient_of_a_held_parameter_is_noticed(watched: int) -> None:
    """Other code switches a held parameter on and runs a backward pass."""
    held = parameters(64)
    hold = Hold(held, "freezer")
    intrusions: list[int] = []
    hold.watch(lambda: intrusions.append(watched))
    hold.take()
    held[watched].requires_grad = True
    held[watched].sum().backward()

    assert intrusions == [watched]


def test_every_hold_watches_in_whatever_state_it_finds_its_parameter() -> None:
    """Held by another, left frozen by a run, frozen by the user, moved to a tensor, abandoned for one."""
    beside, left, frozen, moved, given_up, *successors = parameters(7)
    first, before = Hold([beside], "first"), Hold([left], "the last run")
    for each in (first, before):
        each.take()
    before.abandon()
    frozen.requires_grad = False
    noticed: list[int] = []
    holds = [Hold([parameter], "freezer") for parameter in (beside, left, frozen, moved, given_up)]
    for hold in holds:
        hold.watch(lambda: noticed.append(1))
        hold.take()
    first.let_go()
    later = [holds[3].moved_to(successors[:1]), holds[4].abandoned_for(successors[1:])]
    later[1].take()

    for number, parameter in enumerate([beside, left, frozen, *successors], 1):
        assert not parameter.requires_grad
        parameter.requires_grad = True
        parameter.sum().backward()
        assert len(noticed) == number


def test_watching_ends_with_the_hold() -> None:
    """A thawed parameter trains without any hook of ours."""
    (parameter,) = parameters(1)
    hold = Hold([parameter], "freezer")
    hold.watch(lambda: pytest.fail("a thawed parameter may have a gradient"))
    hold.take()
    hold.let_go()
    parameter.sum().backward()

    assert parameter.grad is not None


def test_the_ledger_keeps_no_parameter_alive() -> None:
    """Records are dropped with their parameters, so a reused id starts without one."""
    gc.collect()  # what other tests left behind
    before = len(ledger_records.records)
    hold = Hold(parameters(100), "freezer")
    hold.take()
    assert len(ledger_records.records) == before + 100
    del hold
    gc.collect()

    assert len(ledger_records.records) == before


def test_a_flag_that_flips_back_at_one_moment_has_not_changed() -> None:
    """Each that changed comes once, and what froze and thawed again is in neither list."""
    stays, freezes, thaws = parameters(3)
    held = Hold([thaws], "before")
    held.take()
    brief, lasting = Hold([stays, freezes], "brief"), Hold([freezes], "lasting")
    with ledger.flips() as flips:
        for hold in (brief, lasting):
            hold.take()
        for hold in (brief, held):
            hold.let_go()

    assert [[id(parameter) for parameter in each] for each in flips.net] == [[id(freezes)], [id(thaws)]]
