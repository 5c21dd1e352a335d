"""What looks wrong with a schedule: a rule without effect, a thaw too late, parameters that nobody trains."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

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
    active_rules: Sequence[ActiveRule], optimizers: Iterable[Any], model: nn.Module
) -> list[str]:
    """Said before the first step.

    Args:
        active_rules: The rules, which hold what the first step holds.
        optimizers: Of the Trainer.
        model: What trains.
    """
    said = [
        f"{active.title} has nothing to freeze: all that it matches was frozen before, and stays so"
        for active in active_rules
        if active.selected and all(map(ledger.is_user_frozen, active.selected.values()))
    ]
    known = parameters_in(optimizers)
    named = canonical_parameters(model)
    unknown = [name for name, p in named.items() if p.requires_grad and id(p) not in known]
    if unknown:
        words = NameSummary(list(named)).compress(unknown)
        said.append(f"{words}: no optimizer knows them, so they get gradients and never train")
    return said


def notices_at_the_end(
    active_rules: Sequence[ActiveRule], actions: Sequence[Action], has_held: Iterable[str], end: Moment
) -> list[str]:
    """Said when the last step is done, before any metric is looked at.

    Args:
        active_rules: The rules.
        actions: The acts.
        has_held: Titles of the rules that held something at some time.
        end: The optimizer steps of the run, and its last epoch.
    """
    held, said = set(has_held), []
    over = f"the run ends at step {end.optimizer_step}, in epoch {end.epoch}"
    for active in active_rules:
        if active.title not in held:
            said.append(f"{active.title} never acts: {over}")
        elif active.hold.is_active and _ends(active) and not active.monitors:
            said.append(f"{active.title} never thaws: {over}")
    for action in actions:
        if action.is_due(Moment(_ALWAYS, _ALWAYS)):
            step = action.next_step(end)
            due = f"is due at step {step}" if step is not None else "has something left to do"
            said.append(f"{action.title} {due}, but {over}")
    return said


def _ends(active: ActiveRule) -> bool:
    """Whether its schedule lets go at some time."""
    return not active.rule.schedule.is_active(Moment(_ALWAYS, _ALWAYS))
