"""What is said about a transition: the record for listeners, and one sentence for the log."""

import logging
import warnings
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn import Parameter

from lighter_freezers import ledger
from lighter_freezers._log import log
from lighter_freezers.callbacks._player import Player
from lighter_freezers.callbacks._transition import Transition
from lighter_freezers.name_summary import compress_names
from lighter_freezers.parameter_names import canonical_name
from lighter_freezers.triggers import Moment

__all__ = ["log_line", "transition", "warn_of_intrusion"]


def transition(
    model: nn.Module,
    moment: Moment,
    frozen: Iterable[Parameter],
    thawed: Iterable[Parameter],
    players: Sequence[Player],
    is_initial: bool,
) -> Transition:
    """The record of a transition that has just happened."""
    names = {id(parameter): canonical_name(name) for name, parameter in model.named_parameters()}
    return Transition(
        optimizer_step=moment.optimizer_step,
        epoch=moment.epoch,
        frozen=tuple(names[id(parameter)] for parameter in frozen),
        thawed=tuple(names[id(parameter)] for parameter in thawed),
        holders=tuple(dict.fromkeys(player.rule.title for player in players if player.hold.is_active)),
        is_initial=is_initial,
    )


def log_line(transition: Transition, model: nn.Module) -> None:
    """Log one sentence: what changed, how much of the model is frozen now, and who holds it."""
    if not log.isEnabledFor(logging.INFO):
        return
    sizes = {canonical_name(name): parameter.numel() for name, parameter in model.named_parameters()}
    num_frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    frozen_verb = "starts with frozen" if transition.is_initial else "froze"
    parts = [
        _part(frozen_verb, transition.frozen, sizes),
        _part("thawed", transition.thawed, sizes),
        f"{100 * num_frozen / max(1, sum(sizes.values())):.3g} % frozen",
        f"held by {', '.join(transition.holders)}" if transition.holders else "",
    ]
    log.info("step %d: %s", transition.optimizer_step, ", ".join(part for part in parts if part))
    log.debug("step %d: froze %s, thawed %s", transition.optimizer_step, transition.frozen, transition.thawed)


def _part(verb: str, names: Sequence[str], sizes: dict[str, int]) -> str:
    if not names:
        return ""
    amount = _amount(sum(sizes[name] for name in names))
    return f"{verb} {compress_names(names, list(sizes))} ({amount} parameters)"


def _amount(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def warn_of_intrusion(player: Player, intruded: Sequence[Parameter]) -> None:
    """Say that something else switched held parameters on, and what becomes of it."""
    names = [name for name, parameter in player.selected.items() if any(parameter is p for p in intruded)]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    holders = ", ".join(ledger.holders(intruded[0]))
    warnings.warn(
        f"Something else set requires_grad=True on {shown}, held frozen by {holders}. "
        "They stay frozen while they are held and train afterwards. This is said once per run.",
        stacklevel=2,
    )
