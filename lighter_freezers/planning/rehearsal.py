"""A rehearsal: the engine runs the schedule of a whole run, with a few real steps in each phase.

It is a callback of a Trainer that trains a copy. Between the steps of two phases the clock jumps to the next
change, and the engine advances to that moment.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.optim import Optimizer

from lighter_freezers._lightning import Callback, LightningModule
from lighter_freezers.engine.actions import Action
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.rules import ActiveRule
from lighter_freezers.engine.stages import StageClock
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.engine.transition import Transition
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.planning.conditions import Awaited, awaited_now
from lighter_freezers.planning.notices import notices_at_the_end, notices_at_the_start
from lighter_freezers.planning.phase_meter import PhaseMeter, PhaseRecord
from lighter_freezers.planning.run_clock import RunClock, RunLength, run_length
from lighter_freezers.planning.values import PlannedRule
from lighter_freezers.reports.state_charts import LayerRates
from lighter_freezers.reports.state_tables import Census
from lighter_freezers.selection.element_counts import distinct, num_elements
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["Rehearsal", "RehearsedPhase"]

_SELDOM = 2**40  # optimizer steps between two steps of LR schedulers: never


@dataclass(frozen=True)
class RehearsedPhase:
    """One rehearsed phase: when it starts, what changes, and what a step costs.

    Attributes:
        when: Why it started, where a metric decided; "" where its step is known.
        or_when: Conditions that would have ended the previous phase earlier.
        transition: The transition that starts it.
        changes: The same as sentences.
        states: Component -> its state.
        share: The share of all elements that trains.
        rates: Group of the optimizer, by its layers -> learning rate.
        record: What was measured; None until it has ended.
    """

    when: str
    or_when: tuple[str, ...]
    transition: Transition
    changes: tuple[str, ...]
    states: dict[str, str]
    share: float
    rates: Mapping[str, float]
    record: PhaseRecord | None = None


class Rehearsal(Callback):
    """Runs the schedule of one run on its Trainer's model; it is the first callback of that Trainer.

    Args:
        user_trainer: The Trainer whose run is rehearsed.
        num_timed: Steps to time in each phase.
        progress: Called with the step at which a phase starts.
    """

    def __init__(self, user_trainer: TrainerLike, num_timed: int, progress: Callable[[int], object]) -> None:
        self._user_trainer = user_trainer
        self._progress = progress
        self.clock = RunClock()
        self.rehearsed_phases: list[RehearsedPhase] = []
        self.rules: list[PlannedRule] = []
        self.warnings: list[str] = []
        self.num_steps: int | None = None
        self.length: RunLength | None = None
        self._meter = PhaseMeter(num_timed, measures_equal_once=True)
        self._engine = Engine()
        self._script: Iterator[None] = iter(())
        self._next_step: int | None = None  # at which something may change before the next epoch
        self._changed = False
        self._when = ""
        self._or_when: tuple[str, ...] = ()
        self._num_optimizer_steps = 0  # in this accumulation window
        self._summary = NameSummary([])

    def setup(self, trainer: TrainerLike, pl_module: LightningModule, stage: str) -> None:
        """Register with the engine for its transitions."""
        Engine.of(trainer).add_listener(self)

    def on_train_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Before the engine asks: an epoch has the batches of one of the user's processes."""
        if self._user_trainer.world_size > 1:
            length = run_length(self._user_trainer, trainer.num_training_batches, trainer.train_dataloader)
            trainer.fit_loop.max_batches = length.batches_per_epoch or math.inf

    def on_train_epoch_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Drive the engine from here on, and start: all hooks before the first step have run."""
        if self.length is not None:
            return
        self._engine = Engine.of(trainer)
        self._engine.drive()
        self.length = run_length(self._user_trainer, trainer.num_training_batches, trainer.train_dataloader)
        trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1
        trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = 0
        _stop_schedulers(trainer)
        self.rules = _rules(self._engine.active_rules, self._engine.actions, pl_module)
        self.warnings += notices_at_the_start(
            self._engine.active_rules, self._engine.actions, trainer.optimizers, pl_module
        )
        self._script = self._play(self.length)
        self._attempt(lambda: self._look(is_new_epoch=True), trainer)

    def on_train_batch_start(
        self, trainer: TrainerLike, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Measure a real batch of the current phase."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._num_optimizer_steps = 0
        self._meter.start_batch(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(
        self, trainer: TrainerLike, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure the gradients."""
        self._num_optimizer_steps += 1
        self._meter.see_gradients(pl_module)

    def on_train_batch_end(
        self, trainer: TrainerLike, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Continue with the next phase when this one is measured, and end after the last."""
        self._meter.end_batch(trainer, batch_idx)
        if not self._meter.has_enough:
            return
        self.clock.steps_per_window = max(1, self._num_optimizer_steps)  # those of the last window
        self._close()
        self._attempt(lambda: next(self._script), trainer)

    def on_train_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """The rehearsal is over: nothing has stopped the user's run, of which others would warn."""
        trainer.should_stop = False

    def on_exception(self, trainer: TrainerLike, pl_module: LightningModule, exception: object) -> None:
        """A step failed: no longer count what torch does."""
        self._meter.break_off()

    def on_transition(self, trainer: TrainerLike, pl_module: nn.Module, transition: Transition) -> None:
        """Start the next phase; called by the engine."""
        self._progress(transition.optimizer_step)
        self._changed = True
        if self.length is not None:
            _stop_schedulers(trainer)  # a stage may have brought one
        named = canonical_parameters(pl_module)
        if transition.is_initial or transition.is_reshaped:
            self._summary = NameSummary(list(named))
        is_same_moment = bool(self.rehearsed_phases) and self.rehearsed_phases[-1].record is None
        earlier = self.rehearsed_phases.pop().changes if is_same_moment else ()
        census = Census(pl_module)
        rates = LayerRates(census.row_of)
        rates.look(trainer.optimizers)
        self.rehearsed_phases.append(
            RehearsedPhase(
                when=self._when,
                or_when=self._or_when,
                transition=transition,
                changes=(*earlier, *transition.in_words(self._summary)),
                states={state.name: state.state for state in census.states},
                share=census.total.trainable_share,
                rates={name.rpartition("/")[2]: rate for name, rate in rates.read().items()},
            )
        )
        self._meter.begin(pl_module, transition)

    def _attempt(self, go_on: Callable[[], object], trainer: TrainerLike) -> None:
        """Continue the schedule; the run ends when nothing is left, or when it would fail."""
        try:
            go_on()
        except StopIteration:
            trainer.should_stop = True
        except (RuntimeError, ValueError) as error:
            trainer.should_stop = True
            where = self._when or f"at step {self.clock.step}"
            self.warnings.append(f"{where}, the run fails: {error}")

    def _close(self) -> None:
        """End the current phase, and keep its record."""
        self._meter.end()
        if self._meter.records and self.rehearsed_phases[-1].record is None:
            self.rehearsed_phases[-1] = replace(self.rehearsed_phases[-1], record=self._meter.records[-1])

    def _play(self, length: RunLength) -> Iterator[None]:
        """Run first what has a known step, then what waits for a metric; stop at each change."""
        for is_new_epoch in self.clock.batches(length):
            if self._look(is_new_epoch=is_new_epoch):
                yield
        self.num_steps = self.clock.step
        self.warnings += notices_at_the_end(
            self._engine.active_rules,
            self._engine.actions,
            [title for rehearsed in self.rehearsed_phases for title in rehearsed.transition.holders],
            Moment(self.clock.step, self.clock.epoch),
        )
        for _ in self._wait_for_metrics():
            if self._look(is_new_epoch=True):
                yield

    def _look(self, *, is_new_epoch: bool) -> bool:
        """Let the engine check the clock; returns whether something changed."""
        self._changed = False
        if self.num_steps is None and is_new_epoch:
            self._or_when = self._conditions()
        moment = Moment(self.clock.step, self.clock.epoch)
        is_due = is_new_epoch or (self._next_step is not None and self._next_step <= moment.optimizer_step)
        assert self.length is not None
        if is_due and self.clock.batch_idx % self.length.window == 0:
            self._engine.advance(moment)
            self._next_step = self._engine.next_step(moment)
        if self._changed and self.num_steps is None:
            self._or_when = self._conditions()
        return self._changed

    def _conditions(self) -> tuple[str, ...]:
        return tuple(each.text for each in awaited_now(self._engine.active_rules, self._engine.actions))

    def _wait_for_metrics(self) -> Iterator[None]:
        """Pass the engine's rules and actions the values that they wait for, one after another."""
        self.clock.batch_idx = 0
        self._or_when = ()
        shown: set[tuple[Awaited, int]] = set()
        watchers: Sequence[ActiveRule | Action] = [*self._engine.active_rules, *self._engine.actions]
        begin = self.clock.step
        while True:
            awaited = awaited_now(self._engine.active_rules, self._engine.actions)
            if awaited and (awaited[0], len(self.rehearsed_phases)) not in shown:
                shown.add((awaited[0], len(self.rehearsed_phases)))
                self._when = f"when {awaited[0].text}"
                for _ in range(awaited[0].num_values):
                    for watcher in watchers:
                        if awaited[0].monitor in watcher.monitors:
                            watcher.observe(awaited[0].monitor, awaited[0].value)
                yield
            elif self._goes_on_by_itself(begin):
                yield
            else:
                return

    def _goes_on_by_itself(self, begin: int) -> bool:
        """Advance to what an action does some steps after a metric triggered it."""
        if not self._when:
            return False
        now = Moment(self.clock.step, self.clock.epoch)
        steps = [
            step
            for action in self._engine.actions  # one without a list to finish has no end
            if action.entries and (step := action.next_step(now)) and step > now.optimizer_step
        ]
        if not steps:
            return False
        self._when = f"{min(steps) - self.clock.step} steps later"
        self.clock.step = min(steps)
        return True


def _stop_schedulers(trainer: TrainerLike) -> None:
    for config in trainer.lr_scheduler_configs:
        config.frequency = _SELDOM


def _rules(
    active_rules: Sequence[ActiveRule], actions: Sequence[Action], model: nn.Module
) -> list[PlannedRule]:
    """What each rule matches, and what each action may change."""
    named = canonical_parameters(model)
    names = {id(parameter): name for name, parameter in named.items()}
    summary = NameSummary(list(named))
    matched = [(active.title, list(active.selected.values())) for active in active_rules]
    matched += [
        (action.title, [*action.freezable(model), *action.trainable_later(model).values()])
        for action in actions
        if not isinstance(action, StageClock)  # whose rules are among the others
    ]
    rules = []
    for title, parameters in matched:
        matches = distinct(parameters)
        chosen = tuple(names[id(each)] for each in matches if id(each) in names)
        rules.append(PlannedRule(title, chosen, summary.compress(chosen), num_elements(matches)))
    return rules
