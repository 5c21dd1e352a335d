"""What looks wrong with a schedule: a rule without effect, a thaw too late, parameters that nobody trains."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from lighter_freezers import ledger
from lighter_freezers.callbacks._acts import Act
from lighter_freezers.callbacks._player import Player
from lighter_freezers.name_summary import NameSummary
from lighter_freezers.parameter_names import canonical_parameters
from lighter_freezers.transitions.optimizer_groups import parameters_in
from lighter_freezers.triggers import Moment

__all__ = ["notices_at_the_end", "notices_at_the_start"]

_ALWAYS = 2**62


def notices_at_the_start(players: Sequence[Player], optimizers: Iterable[Any], model: nn.Module) -> list[str]:
    """Said before the first step.

    Args:
        players: The rules, which hold what the first step holds.
        optimizers: Of the Trainer.
        model: What trains.
    """
    said = [
        f"{player.title} has nothing to freeze: all that it matches was frozen before, and stays so"
        for player in players
        if player.selected and all(map(ledger.is_user_frozen, player.selected.values()))
    ]
    known = parameters_in(optimizers)
    named = canonical_parameters(model)
    unknown = [name for name, p in named.items() if p.requires_grad and id(p) not in known]
    if unknown:
        words = NameSummary(list(named)).compress(unknown)
        said.append(f"{words}: no optimizer knows them, so they get gradients and never train")
    return said


def notices_at_the_end(
    players: Sequence[Player], acts: Sequence[Act], has_held: Iterable[str], end: Moment
) -> list[str]:
    """Said when the last step is done, before any metric is looked at.

    Args:
        players: The rules.
        acts: The acts.
        has_held: Titles of the rules that held something at some time.
        end: The optimizer steps of the run, and its last epoch.
    """
    held, said = set(has_held), []
    over = f"the run ends at step {end.optimizer_step}, in epoch {end.epoch}"
    for player in players:
        if player.title not in held:
            said.append(f"{player.title} never acts: {over}")
        elif player.hold.is_active and _ends(player) and not player.monitors:
            said.append(f"{player.title} never thaws: {over}")
    for act in acts:
        if act.is_due(Moment(_ALWAYS, _ALWAYS)):
            step = act.next_step(end)
            due = f"is due at step {step}" if step is not None else "has something left to do"
            said.append(f"{act.title} {due}, but {over}")
    return said


def _ends(player: Player) -> bool:
    """Whether its schedule lets go at some time."""
    return not player.rule.schedule.is_active(Moment(_ALWAYS, _ALWAYS))
