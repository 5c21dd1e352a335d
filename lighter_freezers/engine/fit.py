"""The rules and actions of one fit, and their effects. Independent of Lightning: any loop can advance it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from torch import nn
from torch.optim import Optimizer

from lighter_freezers.engine import baselines, idle_schedules, ledger, trainer_clock
from lighter_freezers.engine.actions import Action, Actions, StepContext
from lighter_freezers.engine.effects.learning_rates import KeptRate
from lighter_freezers.engine.flips import Flips
from lighter_freezers.engine.followers import Followers, TransitionListener
from lighter_freezers.engine.intrusions import Intrusions
from lighter_freezers.engine.ledger_records import is_left_over
from lighter_freezers.engine.metric_watch import MetricWatch
from lighter_freezers.engine.rules import FreezeRule, active_rules_of, follow_all, refuse_overlap
from lighter_freezers.engine.run_shares import RunShares
from lighter_freezers.engine.stages import StageClock
from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of
from lighter_freezers.engine.trainer_strategies import refuse_flat_gradients, refuse_unsupported_strategy
from lighter_freezers.engine.training_loss import StepLoss, loss_of
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.selection.adapters import is_adapted
from lighter_freezers.selection.tied_weights import TiedWeights

__all__ = ["EachBatch", "Fit"]

EachBatch: TypeAlias = Callable[[TrainerLike], bool]


class Fit:
    """One fit of one model.

    Args:
        actions: New ones, in the order of their callbacks.
        rules: In the order of their callbacks.
    """

    def __init__(self, actions: Sequence[Action] = (), rules: Sequence[FreezeRule] = ()) -> None:
        self.actions = Actions(actions)
        self.active_rules = active_rules_of(rules)
        self.metrics = MetricWatch([*self.active_rules, *self.actions])
        self.followers = Followers(self.active_rules, self.actions)
        self.intrusions = Intrusions()
        self.shares = RunShares()
        self._clock = _only_clock(self.actions)
        self.each_batch: list[EachBatch] = []  # called after each, until it returns False
        self._has_begun = self._has_advanced = False
        self._found: list[tuple[str, dict[str, nn.Parameter]]] = []  # by actions, at set-up
        self.step_loss: StepLoss | None = None  # kept while an action wants it
        self.saved_loss: float | None = None  # the loss of the step before this fit goes on
        self._num_steps: Callable[[], int] = lambda: 0  # optimizer steps done
        self._window = 1  # batches in an accumulation window, when the last loss was computed

    @property
    def followed_by(self) -> str:
        """The kind of callbacks that the engine runs before."""
        return "Callback" if any(action.ends_first for action in self.actions) else "LearningRateMonitor"

    def check_strategy(self, trainer: TrainerLike) -> None:
        """Refuse a strategy that cannot do what the rules and actions of this fit ask for."""
        refuse_unsupported_strategy(
            trainer.strategy,
            is_static=all(active.rule.is_static for active in self.active_rules) and not len(self.actions),
            reshapes=any(action.reshapes for action in self.actions),
            allow_untested=any(getattr(each, "allow_untested", False) for each in callbacks_of(trainer)),
        )
        for action in self.actions:
            if action.depends_on_data and action.wants_gradients:
                refuse_flat_gradients(trainer.strategy, action.title)

    def bind(self, model: nn.Module, moment: Moment, on_intrusion: Callable[[], None]) -> None:
        """Find the parameters of every rule, and hold what the current moment requires."""
        tied = TiedWeights(model)
        for active in self.active_rules:
            active.hold.watch(on_intrusion)
            active.bind(tied)
        refuse_overlap(self.active_rules)
        holdable = [each for active in self.active_rules for each in active.hold.parameters]
        holdable += [each for action in self.actions for each in action.freezable(model)]
        baselines.mark(model, holdable)
        self._found = idle_schedules.found_by(self.actions, model)
        follow_all(self.active_rules, moment)
        if not is_adapted(model):  # PEFT freezes all but its adapters
            ledger.thaw(filter(is_left_over, holdable), "")  # the schedule begins anew, so that they train
        if self.active_rules and not len(self.actions):  # an action may thaw something before that
            idle_schedules.refuse_idle_phase(self.active_rules, model)

    def prepare(self, context: StepContext, listeners: Sequence[TransitionListener]) -> None:
        """Optimizers are as built: those of the stage take their place, and get their groups."""
        kept: list[KeptRate] = []
        if self._clock is not None:
            self._clock.optimizers.begin(context.trainer)
            if self._clock.optimizers.is_due(self._clock.number):
                self._clock.optimizers.install(context, self._clock.number)
                kept = self._clock.optimizers.kept_rates(context)
        self.followers.prepare(context, listeners, kept)

    def resume(self, context: StepContext) -> None:
        """Hold what was held when the state of this fit was saved, or what this moment requires."""
        idle_schedules.refuse_replaced(self.active_rules, self._found, context.model, context.moment)
        self.shares.begin(context.trainer, context.model)
        for action in self.actions:
            action.resolve(self.shares)
        if self._clock is not None:
            end_of = partial(self._clock.end_of, shares=self.shares)
            self._clock.optimizers.measure(end_of, is_global_zero=context.trainer.is_global_zero)
        self._set_stage(self._clock.number if self._clock else 0)
        self._follow_stage(context)
        for active in self.active_rules:
            active.resolve(self.shares)
            active.resume(context.moment)
        self._num_steps = trainer_clock.step_counter(context.trainer, context.model)
        if any(action.wants_loss for action in self.actions):
            device = context.trainer.strategy.root_device
            self.step_loss = StepLoss(context.moment.optimizer_step, self.saved_loss, device)
        self.actions.resume(context)

    def context(self, trainer: TrainerLike, model: nn.Module, moment: Moment) -> StepContext:
        """What actions get at this moment."""
        return StepContext(trainer, model, moment, loss=self.step_loss.value if self.step_loss else None)

    def begin_epoch(self, trainer: TrainerLike, model: nn.Module) -> None:
        """Check that the layers are still those of the set-up, and write the learning rates that moved."""
        if not self._has_begun and trainer.is_global_zero:  # a rehearsal has no end to warn of
            idle_schedules.warn_of_short_run(self.active_rules, list(self.actions), trainer, model)
        self._has_begun = True
        self._num_steps = trainer_clock.step_counter(trainer, model)
        idle_schedules.refuse_replaced(self.active_rules, self._found, model, trainer_clock.moment(trainer))
        self.followers.optimizers.keep_up()

    def advance(self, context: StepContext) -> bool:
        """Apply all that is due at a moment between two optimizer steps; returns whether anything was."""
        with ledger.flips() as flips:
            if self._clock is not None:
                self._set_stage(self._clock.enter(context.moment))
            follow_all(self.active_rules, context.moment)
            outcome = self.actions.perform(context)
            self._follow_stage(context, flips)
        has_moved = self.followers.follow(context, flips, outcome)
        if not self._has_advanced and len(self.actions):  # rules alone were checked at set-up
            idle_schedules.refuse_idle_now(context.model, context.moment)
        self._has_advanced = True
        return has_moved

    def begin_stages(self, trainer: TrainerLike, model: nn.Module, wake: Callable[[], object]) -> None:
        """Before the first step, or later: let stages see the run; `wake` has the next moment looked at.

        Raises:
            RuntimeError: They need what the run does not have.
        """
        if self._clock is not None:
            self._clock.begin(trainer, model, wake)
            if self._clock.restores and any(action.reshapes for action in self.actions):
                raise RuntimeError(
                    "restore_best puts the weights of an earlier step back, and another callback may have "
                    "changed LoRA ranks since then. Remove restore_best, or leave the ranks alone."
                )

    def _set_stage(self, stage: int) -> None:
        for active in self.active_rules:
            active.stage = stage

    def _follow_stage(self, context: StepContext, flips: Flips | None = None) -> None:
        """Put the optimizer and the LR scheduler of the stage in place of those before it."""
        if self._clock is None or not self._clock.optimizers.is_due(self._clock.number):
            return
        ours, number = self._clock.optimizers, self._clock.number
        if flips is not None:
            ours.keep_rates(context, number, flips.net[1])
        self.followers.optimizers.release()
        ours.install(context, number)
        self.followers.prepare_optimizers(context, ours.kept_rates(context))

    def next_steps(self, moment: Moment) -> list[int]:
        """The optimizer steps at which something may be due without a new metric value."""
        steps = [active.next_step(moment) for active in self.active_rules]
        return [step for step in steps if step is not None] + self.actions.next_steps(moment)

    @property
    def acts_each_batch(self) -> bool:
        """Whether `note_loss` and `end_batch` have to be called after each batch."""
        return self.listens_to_loss or self.followers.optimizers.acts_each_step or bool(self.each_batch)

    @property
    def listens_to_loss(self) -> bool:
        """Whether any action wants the training loss."""
        return self.step_loss is not None or self.actions.listens_to_loss

    def note_window(self, trainer: TrainerLike, *_: object) -> None:
        """Between `training_step` and `backward`: remember by what Lightning has divided the loss."""
        self._window = trainer_clock.window_length(trainer)

    def note_loss(self, trainer: TrainerLike, outputs: object) -> bool:
        """Record the loss of one batch; returns whether an average that an action waits for is complete."""
        loss, step = loss_of(outputs, self._window), self._num_steps()
        if self.step_loss is not None:
            self.step_loss.note(loss, step)
        return self.actions.note_loss(trainer, loss, step, self._window)

    def note_step_loss(self, outputs: object) -> None:
        """Record the loss of one batch as part of its step's alone."""
        if self.step_loss is not None:
            self.step_loss.note(loss_of(outputs, self._window), self._num_steps())

    def end_batch(self, trainer: TrainerLike) -> bool:
        """Set the learning rates again, and call what follows steps; returns whether any of it goes on."""
        rates = self.followers.optimizers
        if rates.acts_each_step:
            rates.keep_up()
        elif not self.each_batch:
            return self.listens_to_loss
        self.each_batch = [call for call in self.each_batch if call(trainer)]
        return self.acts_each_batch

    @property
    def wants_gradients(self) -> bool:
        """Whether `show_gradients` has to be called before an optimizer step."""
        is_own = self.intrusions.is_pending or bool(self.followers.optimizers.empty)
        return is_own or any(action.wants_gradients for action in self.actions)

    def show_gradients(self, context: StepContext, optimizer: Optimizer) -> None:
        """Pass the gradients to the actions that want them; the optimizer gets none without elements."""
        self.followers.optimizers.empty.drop(optimizer)
        for action in self.actions:
            if action.wants_gradients:
                action.before_optimizer_step(context, optimizer)

    def reassert(self) -> bool:
        """Freeze again what other code switched on; returns whether any had received a gradient."""
        was_pending = self.intrusions.is_pending
        holds = [active.hold for active in self.active_rules]
        holds += [hold for action in self.actions for hold in action.holds]
        self.intrusions.undo(holds, self.followers.announcer)
        return was_pending

    def leave(self, model: nn.Module) -> None:
        """The fit has ended or failed: restore the model, but for the flags, which stay as they are."""
        for active in sorted(self.active_rules, key=lambda each: not each.rule.restore_on_end):
            active.leave()  # those that thaw come first, while the others still hold
        self.actions.leave()
        self.followers.release()
        baselines.mark(model, [each for each in model.parameters() if not each.requires_grad])


def _only_clock(actions: Actions) -> StageClock | None:
    """The one action that counts the stages of the run; None where none does.

    Raises:
        RuntimeError: Several do.
    """
    clocks = [action for action in actions if isinstance(action, StageClock)]
    if len(clocks) > 1:
        raise RuntimeError(
            f"{' and '.join(clock.title for clock in clocks)} both say which stages the run has. Write one "
            "list of stages, and let a Freezer hold what follows a schedule of its own."
        )
    return clocks[0] if clocks else None
