"""Warnings about a schedule: rules without effect, thaws after the last step, parameters in no optimizer."""

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer

from lighter_freezers.engine import ledger
from lighter_freezers.engine.actions import Action
from lighter_freezers.engine.effects.optimizer_groups import parameters_in
from lighter_freezers.engine.rules import ActiveRule
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["notices_at_the_end", "notices_at_the_start"]

_ALWAYS = 2**62


def notices_at_the_start(
    active_rules: Sequence[ActiveRule],
    actions: Sequence[Action],
    optimizers: Iterable[Optimizer],
    model: nn.Module,
) -> list[str]:
    """The warnings before the first step.

    Args:
        active_rules: The rules, which hold what the first step holds.
        actions: The actions.
        optimizers: Those of the Trainer.
        model: The module that trains.
    """
    said = [
        f"{active.title} has nothing to freeze: all that it matches was frozen before, and stays so"
        for active in active_rules
        if active.selected and all(map(ledger.is_user_frozen, active.selected.values()))
    ]
    said += [
        f"{action.title} decides by what it measures in the run: what it may change is known only then"
        for action in actions
        if action.depends_on_data
    ]
    known = parameters_in(optimizers)
    named = canonical_parameters(model)
    unknown = [name for name, p in named.items() if p.requires_grad and id(p) not in known]
    if unknown:
        words = NameSummary(list(named)).compress(unknown)
        said.append(f"{words}: they are in no optimizer, so they get gradients and never train")
    return said


def notices_at_the_end(
    active_rules: Sequence[ActiveRule], actions: Sequence[Action], has_held: Iterable[str], end: Moment
) -> list[str]:
    """The warnings after the last step, before any metric is considered.

    Args:
        active_rules: The rules.
        actions: The actions.
        has_held: Titles of the rules that held something at some time.
        end: The optimizer steps of the run, and its last epoch.
    """
    held, said = set(has_held), []
    over = f"the run ends at step {end.optimizer_step}, in epoch {end.epoch}"
    for active in active_rules:
        if active.title not in held and not _only_sets_rates(active):
            said.append(f"{active.title} never holds: {over}")
        elif active.hold.is_active and _ends(active) and not active.monitors and active.released_at is None:
            said.append(f"{active.title} never thaws: {over}")
    for action in actions:
        if action.entries and action.is_due(Moment(_ALWAYS, _ALWAYS)):  # else it has no list to finish
            step = action.next_step(end)
            due = f"is due at step {step}" if step is not None else "has changes left to make"
            said.append(f"{action.title} {due}, but {over}")
    return said


def _only_sets_rates(active: ActiveRule) -> bool:
    """Whether it holds nothing from the first step on, and requests a rate."""
    schedule = active.rule.schedule
    return active.learning_rate is not None and 0 in (schedule.until_step, schedule.until_epoch)


def _ends(active: ActiveRule) -> bool:
    """Whether its schedule ever ends; a stage may begin late, or never."""
    return active.rule.stages is None and not active.rule.schedule.is_active(Moment(_ALWAYS, _ALWAYS))
