"""Describes a transition: the record for listeners, and one line for the log."""

import logging
import warnings
from collections.abc import Sequence
from itertools import compress
from operator import attrgetter

from torch import nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from lighter_freezers._log import log
from lighter_freezers.engine import ledger
from lighter_freezers.engine.actions import Action, ActionResult
from lighter_freezers.engine.flips import between_steps
from lighter_freezers.engine.rules import ActiveRule
from lighter_freezers.engine.transition import Transition
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.selection.element_counts import frozen_share_text, num_elements, size_of
from lighter_freezers.selection.name_summary import NameSummary, first_few
from lighter_freezers.selection.names import canonical_name

__all__ = ["Announcer"]


class Announcer:
    """Logs what transitions change in one model. Names and sizes are looked up once, not at each transition.

    Args:
        model: The module that trains.
        active_rules: The rules. The text for what each can freeze or thaw is built in advance.
        actions: The actions.

    Attributes:
        has_lazy: Whether some layer had no shape yet, so that sizes have to be looked up again.
    """

    def __init__(
        self, model: nn.Module, active_rules: Sequence[ActiveRule], actions: Sequence[Action] = ()
    ) -> None:
        named = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
        self._names = {id(parameter): name for name, parameter in named.items()}
        self._parameters = list(named.values())
        self.has_lazy = any(map(is_lazy, self._parameters))
        self._sizes = list(map(size_of, self._parameters))
        self._num_elements = sum(self._sizes)
        self._summary = NameSummary(list(named))
        self._groups: dict[tuple[int, ...], tuple[str, ...]] = {}  # ids -> names
        self._texts: dict[tuple[str, ...], str] = {}  # names -> a short phrase
        self._elements: dict[tuple[str, ...], int] = {}  # names -> how many elements
        self._witness: Parameter | None = None  # one that trains
        self._num_training = 0  # elements
        self._counted_at = (-1, -1)  # epoch, and flips by others until then
        self._active_rules = active_rules
        self._actions = actions
        for active in active_rules:
            self._named([p for p in active.hold.parameters if not ledger.is_user_frozen(p)])

    @property
    def sees_training(self) -> bool:
        """Whether anything trains: as a rule one look at what trained the last time, else at all flags."""
        if self._witness is None or not self._witness.requires_grad:
            self._witness = next((each for each in reversed(self._parameters) if each.requires_grad), None)
        return self._witness is not None

    def transition(
        self,
        moment: Moment,
        frozen: Sequence[Parameter],
        thawed: Sequence[Parameter],
        is_initial: bool,
        outcome: ActionResult | None = None,
    ) -> Transition:
        """The record of a transition that was just made."""
        holding = [active.rule.title for active in self._active_rules if active.hold.is_active]
        holding += [hold.holder for action in self._actions for hold in action.holds if hold.is_active]
        done = outcome or ActionResult()
        return Transition(
            optimizer_step=moment.optimizer_step,
            epoch=moment.epoch,
            frozen=self._named(frozen),
            thawed=self._named(thawed),
            holders=tuple(dict.fromkeys(holding)),
            is_initial=is_initial,
            notes=done.notes,
            ranks=done.ranks,
            is_reshaped=done.is_reshaped,
            uncertain=self._uncertain(done),
        )

    def _uncertain(self, done: ActionResult) -> frozenset[str]:
        """The notes that depend on data, and the names of what their actions may hold."""
        if not done.depends_on_data:
            return frozenset()
        holds = [hold for action in self._actions if action.depends_on_data for hold in action.holds]
        return frozenset(done.examples).union(
            self._names[id(each)] for hold in holds for each in hold.parameters if id(each) in self._names
        )

    def log_lines(self, transition: Transition) -> None:
        """Log a line for each action, and one for the flags: what changed, the share frozen, who holds it."""
        if not log.isEnabledFor(logging.INFO):
            self._counted_at = (-1, -1)
            return
        for note in transition.notes:
            log.info("step %d: %s", transition.optimizer_step, note)
        if not (transition.frozen or transition.thawed or transition.is_initial):
            return
        self._count(transition)
        frozen_verb = "starts with frozen" if transition.is_initial else "froze"
        parts = [
            f"{frozen_verb} {self._texts[transition.frozen]}" if transition.frozen else "",
            f"thawed {self._texts[transition.thawed]}" if transition.thawed else "",
            frozen_share_text(self._num_training, self._num_elements),
            f"held by {', '.join(transition.holders)}" if transition.holders else "",
        ]
        step = transition.optimizer_step
        log.info("step %d: %s", step, ", ".join(part for part in parts if part))
        log.debug("step %d: froze %s, thawed %s", step, transition.frozen, transition.thawed)

    def warn_of_intrusion(self, intruded: Sequence[Parameter]) -> None:
        """Warn that other code switched held parameters on, and state what happens to them."""
        self._counted_at = (-1, -1)
        names = self._named(intruded)
        holders = ", ".join(ledger.holders(intruded[0]))
        warnings.warn(
            f"Something else set requires_grad=True on {first_few(names)}, held frozen by {holders}. "
            "They stay frozen while they are held and train afterwards. This warning appears once per run.",
            stacklevel=2,
        )

    def warn_of_no_rate(self, parameters: Sequence[Parameter], *, has_scheduler: bool) -> None:
        """Warn that parameters which have just thawed have a learning rate of 0."""
        until = " until the LR scheduler raises it" if has_scheduler else ""
        log.warning(
            "%s thawed, but the learning rate there is 0, so these weights do not move%s. Thaw them later "
            "or give them a rate. This warning appears once per run",
            self._summary.compress(self._named(parameters)),
            until,
        )

    def _count(self, transition: Transition) -> None:
        """Follow what trains; once an epoch look at every flag, which other code may have set."""
        at = (transition.epoch, between_steps.num_noted)
        if at == self._counted_at and not transition.is_initial:
            self._num_training += self._elements.get(transition.thawed, 0)
            self._num_training -= self._elements.get(transition.frozen, 0)
            return
        self._counted_at = at
        flags = map(attrgetter("requires_grad"), self._parameters)
        self._num_training = sum(compress(self._sizes, flags))

    def _named(self, parameters: Sequence[Parameter]) -> tuple[str, ...]:
        """The names of parameters that change together; their text is built the first time."""
        key = tuple(map(id, parameters))
        if key not in self._groups:
            if not self._names.keys() >= {*key}:
                raise RuntimeError(
                    "What was just frozen or thawed is no part of the model that training began with: the "
                    "module has replaced layers since then. Do so in __init__, setup or configure_model."
                )
            names = tuple(self._names[each] for each in key)
            self._elements[names] = num_elements(parameters)
            amount = f"{_amount(self._elements[names])} parameters"
            if any(map(is_lazy, parameters)):
                amount = "of no shape before the first batch"
            self._groups[key] = names
            self._texts[names] = f"{self._summary.compress(names)} ({amount})"
        return self._groups[key]


def _amount(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
