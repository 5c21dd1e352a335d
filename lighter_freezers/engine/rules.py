"""One freezing rule and its state in a run: what it selects, whether it holds now, what it remembers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from torch.nn import Parameter

from lighter_freezers.engine.checkpoint_identity import numbered, rule_key
from lighter_freezers.engine.effects.learning_rates import LearningRateRequest
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.run_shares import RunShares
from lighter_freezers.engine.terms import Terms
from lighter_freezers.engine.trainer_like import SavedState
from lighter_freezers.engine.triggers import History, MetricTrigger, Moment, Schedule
from lighter_freezers.selection.select import ParameterSelector
from lighter_freezers.selection.tied_weights import TiedWeights

__all__ = [
    "ActiveRule",
    "FreezeRule",
    "active_rules_of",
    "follow_all",
    "num_transitions",
    "refuse_overlap",
]


@dataclass(frozen=True)
class FreezeRule:
    """What to freeze, when, and what else to change then; made from a callback's arguments alone.

    Attributes:
        title: Names the rule in logs and errors.
        selector: Which parameters.
        schedule: When to hold them.
        trigger: Ends the rule for good when it fires; None for the schedule alone.
        learning_rate: Requested for what thaws; None to leave learning rates alone.
        terms: What else it asks for while it holds: optimizer state, norm layers, the backward pass.
        optimizer_params: Whether a parameter that is in no optimizer gets a group, or is an error.
        optimizer: Which optimizer takes such a parameter: its index, its class, or a module it trains.
        on_overlap: Whether other rules may select the same parameters.
        on_missing: Whether a name that matches nothing is an error.
        restore_on_end: Whether to thaw when the run ends.
        monitor_argument: What the user calls the argument that names the metric, for errors.
        stages: The stages of the run in which it may hold; None for all of them.
    """

    title: str
    selector: ParameterSelector
    schedule: Schedule
    trigger: MetricTrigger | None = None
    learning_rate: LearningRateRequest | None = None
    terms: Terms = Terms()
    optimizer_params: Literal["auto", "error"] = "auto"
    on_overlap: Literal["compose", "error"] = "compose"
    on_missing: Literal["error", "warn"] = "error"
    restore_on_end: bool = False
    optimizer: int | str | None = None
    monitor_argument: str = "until_metric.monitor"
    stages: tuple[int, ...] | None = None

    @property
    def is_static(self) -> bool:
        """Whether it holds from the first step to the last."""
        return self.trigger is None and self.stages is None and self.schedule == Schedule()

    @property
    def never_releases(self) -> bool:
        """Whether what it holds once stays held, however long the run is."""
        schedule = self.schedule
        bounds = (schedule.until_step, schedule.until_epoch)
        return (
            self.trigger is None and self.stages is None and not schedule.windows and bounds == (None, None)
        )


class ActiveRule:
    """A rule bound to a model, with its state.

    Args:
        rule: The rule.
        key: The name of its state in a checkpoint.
    """

    def __init__(self, rule: FreezeRule, key: str) -> None:
        self.rule = rule
        self.key = key
        self.selected: dict[str, Parameter] = {}
        self.hold = Hold([], rule.title, rule.terms)
        self.history = History()
        self.stage = 0  # of the run
        is_over = 0 in (rule.schedule.until_step, rule.schedule.until_epoch)
        self.released_at: int | None = 0 if is_over else None  # released before the first step
        self.released_in = 0  # epoch
        self._is_restored = False
        self._was_holding: bool | None = None  # when the checkpoint of this resumed run was saved

    @property
    def title(self) -> str:
        """Names the rule in logs and errors."""
        return self.rule.title

    @property
    def monitor_argument(self) -> str:
        """What the user calls the argument that names the metric."""
        return self.rule.monitor_argument

    @property
    def monitors(self) -> frozenset[str]:
        """The metric it waits for; empty when it does not, or not any more."""
        trigger = None if self.history.has_fired else self.rule.trigger
        return frozenset() if trigger is None else frozenset({trigger.monitor})

    @property
    def learning_rate(self) -> LearningRateRequest | None:
        """The rate it requests for the parameters it releases."""
        return self.rule.learning_rate

    def bind(self, tied: TiedWeights) -> None:
        """Find its parameters in a model, or find them again after a module was rebuilt or sharded."""
        selected = self.rule.selector.select(tied.model, self.rule.on_missing, tied)
        if [id(p) for p in selected.values()] == [id(p) for p in self.selected.values()]:
            return
        if selected.keys() == self.selected.keys():
            self.hold = self.hold.moved_to(list(selected.values()))
        else:
            self.hold = self.hold.abandoned_for(selected.values())
        self.selected = selected

    def holds_at(self, moment: Moment) -> bool:
        """Whether it holds at a moment."""
        is_in_stage = self.rule.stages is None or self.stage in self.rule.stages
        return is_in_stage and self.rule.schedule.is_active(moment) and not self.history.has_fired

    def follow(self, moment: Moment) -> None:
        """Hold or release, as the schedule requires at this moment."""
        if self.holds_at(moment):
            self.hold.take()
        elif self.hold.is_active:
            self.released_at, self.released_in = moment.optimizer_step, moment.epoch
            self.hold.let_go()

    def released_by(self, moment: Moment) -> int | None:
        """The optimizer step of the last release, counting one that is due at this moment."""
        return moment.optimizer_step if self._is_ending(moment) else self.released_at

    def epochs_since(self, moment: Moment) -> int:
        """Epochs since the last release, counting one that is due at this moment."""
        return 0 if self._is_ending(moment) else max(0, moment.epoch - self.released_in)

    def _is_ending(self, moment: Moment) -> bool:
        """Whether a release is due."""
        return self.hold.is_active and not self.holds_at(moment)

    def next_step(self, moment: Moment) -> int | None:
        """The next optimizer step at which the schedule may change something; None if there is none."""
        return None if self.history.has_fired else self.rule.schedule.next_step(moment)

    def observe(self, monitor: str, value: float) -> bool:
        """Pass a new value to the metric trigger.

        Returns:
            Whether it fired just now.
        """
        assert self.rule.trigger is not None
        had_fired = self.history.has_fired
        self.history = self.rule.trigger.observe(value, self.history)
        return self.history.has_fired and not had_fired

    def leave(self) -> None:
        """At the end of the run: thaw if `restore_on_end` is set, else leave the flags as they are."""
        if self.rule.restore_on_end:
            self.hold.let_go()
        self.hold.abandon()

    def state(self) -> dict[str, object]:
        """The state for a checkpoint, in plain types; the rest follows from step and epoch."""
        return {
            "title": self.title,
            "is_holding": self.hold.is_active,
            "released_at": self.released_at,
            "released_in": self.released_in,
            "best": self.history.best,
            "num_without_progress": self.history.num_without_progress,
            "has_fired": self.history.has_fired,
        }

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned when the checkpoint was saved; `resume` then applies it."""
        self.history = History(state["best"], state["num_without_progress"], state["has_fired"])
        self.released_at = state["released_at"]
        self.released_in = state.get("released_in", self.rule.schedule.until_epoch or 0)
        self._was_holding = state["is_holding"]
        self._is_restored = True

    def resolve(self, shares: RunShares) -> None:
        """The length of the run is known: put steps and epochs in place of shares of it."""
        self.rule = replace(self.rule, schedule=shares.resolved(self.rule.schedule))

    def resume(self, moment: Moment) -> None:
        """Hold what it held when the checkpoint was saved, or if unknown what the schedule requires."""
        if self._was_holding is None:
            self.follow(moment)
            end = self.rule.schedule.last_end(moment)
            if end is not None and not self.hold.is_active:
                self.released_at, self.released_in = end, moment.epoch  # steps do not tell the epoch
        elif self._was_holding:
            self.hold.take()
        else:
            self.hold.let_go()
        self._was_holding = None

    def misses_state(self, moment: Moment) -> bool:
        """Whether it lacks state that matters: the history of its metric, or when its rate began to move."""
        schedule, rate = self.rule.schedule, self.rule.learning_rate
        if self._is_restored:
            return False
        if self.rule.trigger is not None and not schedule.has_ended(moment):
            return True
        if rate is None or self.released_at is None or moment.optimizer_step == schedule.last_end(moment):
            return False
        # a warm-up counts from the step of the release, growth from its epoch, which steps do not tell
        is_warming_up = rate.warmup_steps > 0 and self.released_at == moment.optimizer_step
        return is_warming_up or rate.growth is not None


def follow_all(active_rules: Sequence[ActiveRule], moment: Moment) -> None:
    """Hold or release, for all rules: first what holds, so that nothing thaws between two holds."""
    for active in sorted(active_rules, key=lambda each: not each.holds_at(moment)):
        active.follow(moment)


def active_rules_of(rules: Sequence[FreezeRule]) -> list[ActiveRule]:
    """One active rule per rule; rules that agree in what and when get distinct keys, in their order."""
    keys = numbered(rule_key(rule.selector, rule.schedule, rule.trigger, rule.stages) for rule in rules)
    return [ActiveRule(rule, key) for rule, key in zip(rules, keys, strict=True)]


def num_transitions(rules: Iterable[FreezeRule]) -> int:
    """Count the changes in the schedules; those at one step or epoch, or by equal conditions, are one."""
    return len({change for rule in rules for change in _changes(rule)})


def _changes(rule: FreezeRule) -> set[tuple[str, object]]:
    schedule = rule.schedule
    steps = {schedule.from_step, schedule.until_step, *chain.from_iterable(schedule.windows)}
    changes: set[tuple[str, object]] = {("step", step) for step in steps if step}
    changes |= {("epoch", epoch) for epoch in (schedule.from_epoch, schedule.until_epoch) if epoch}
    changes |= {("stage", stage) for stage in rule.stages or () if stage}
    return changes | ({("metric", rule.trigger)} if rule.trigger else set())


def refuse_overlap(active_rules: Sequence[ActiveRule]) -> None:
    """Raise if two rules select the same parameter and one of them forbids it.

    Raises:
        ValueError: There is such a parameter; the message names it and both rules.
    """
    owners: dict[int, ActiveRule] = {}
    for active in active_rules:
        for name, parameter in active.selected.items():
            other = owners.setdefault(id(parameter), active)
            if other is not active and "error" in (other.rule.on_overlap, active.rule.on_overlap):
                raise ValueError(
                    f"{other.rule.title} and {active.rule.title} both select '{name}', "
                    "and on_overlap is 'error'. Exclude it from one of them, or set on_overlap='compose': "
                    "it is then frozen as long as either holds it."
                )
