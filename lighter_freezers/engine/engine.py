"""One engine per Trainer: tracks steps and epochs for every rule and action, applies all changes together.

It adds itself to `trainer.callbacks` during `setup`, next to the first callback of ours. Callbacks that bring
rules or actions have no per-step hook of their own, so ten of them cost no more than one.
"""

from torch import nn
from torch.optim import Optimizer

from lighter_freezers._lightning import Callback, LightningModule
from lighter_freezers.engine import (
    averaging,
    checkpoint_identity,
    checkpoint_state,
    idle_schedules,
    ledger,
    trainer_clock,
)
from lighter_freezers.engine.actions import Action, Actions, StepContext
from lighter_freezers.engine.effects import ddp_wrapper
from lighter_freezers.engine.followers import Followers, TransitionListener
from lighter_freezers.engine.intrusions import Intrusions
from lighter_freezers.engine.metric_watch import MetricWatch
from lighter_freezers.engine.rules import ActiveRule, FreezeRule, active_rules_of, follow_all, refuse_overlap
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike, callbacks_of, stand_before
from lighter_freezers.engine.trainer_strategies import refuse_unsupported_strategy

__all__ = ["EngineCallback", "Engine"]


class EngineCallback(Callback):
    """A callback that brings freezing rules or actions, which the engine of its Trainer applies."""

    def rules(self) -> list[FreezeRule]:
        """The rules, made from the arguments alone."""
        return []

    def rules_for(self, model: nn.Module) -> list[FreezeRule]:
        """The rules for one model, for callbacks that have to see it before they can make them."""
        return self.rules()

    def actions(self) -> list[Action]:
        """New actions, made from the arguments alone; called once per fit or validation."""
        return []

    def setup(self, trainer: TrainerLike, pl_module: LightningModule, stage: str) -> None:
        """Add an engine to the Trainer if it has none."""
        Engine.of(trainer)


class Engine(Callback):
    """Applies the rules and actions of all `EngineCallback` callbacks of one Trainer.

    Runs on: `setup` (hold what the first step holds, before the optimizer, the sanity check and the DDP
    wrapper), `on_fit_start` (optimizer groups), `on_train_start` (after a resume, hold what the checkpoint
    held), `on_train_batch_start` (transitions, between optimizer steps only).
    """

    state_key = checkpoint_identity.STATE_KEY  # no property, because Lightning reads it at every hook

    def __init__(self) -> None:
        self._active_rules: list[ActiveRule] = []
        self._actions = Actions([])
        self._listeners: list[TransitionListener] = []
        self._followers = Followers([], self._actions)
        self._metrics = MetricWatch([])
        self._wait = 1  # batches until something may change
        self._builds_late = self._is_set_up = self._is_fit = False
        self._loaded_state: SavedState = {}
        self._unmatched: tuple[list[str], list[str]] = ([], [])  # actions without state, state without owner
        self._has_resumed = False
        self._intrusions = Intrusions()
        self._last_state: SavedState = {}

    @classmethod
    def of(cls, trainer: TrainerLike) -> "Engine":
        """The engine of a Trainer, added next to the first callback of ours if there is none yet."""
        for callback in callbacks_of(trainer):
            if isinstance(callback, cls):
                return callback
        engine = cls()
        callbacks = callbacks_of(trainer)
        is_ours = [
            isinstance(each, Callback) and type(each).setup is not Callback.setup for each in callbacks
        ]
        # after the first of ours with a `setup`: it runs now, and Lightning is iterating over this list
        place = is_ours.index(True) + 1
        callbacks[place:place] = [engine, *averaging.AverageKeeper.where_needed(trainer, engine)]
        return engine

    def add_listener(self, listener: TransitionListener) -> None:
        """Notify a callback of the transitions of this fit. It calls this in its `setup`."""
        self._listeners.append(listener)

    @property
    def active_rules(self) -> list[ActiveRule]:
        """The rules of this fit, bound to the model."""
        return self._active_rules

    @property
    def actions(self) -> list[Action]:
        """The actions of this fit."""
        return list(self._actions)

    def setup(self, trainer: TrainerLike, pl_module: LightningModule, stage: str) -> None:
        """Select the parameters of every rule, and hold what the first step holds."""
        self._is_fit = stage == "fit"
        stand_before(trainer, self, "LearningRateMonitor")
        self._builds_late = "core.hooks" not in type(pl_module).configure_model.__module__
        self._actions = Actions([each for ours in _engine_callbacks(trainer) for each in ours.actions()])
        self._is_set_up = False
        try:
            for action in self._actions:
                action.on_intrusion = self._on_intrusion
                action.setup(trainer, pl_module, stage)
            if stage == "fit":
                self._set_up_fit(trainer, pl_module)
        except ValueError:
            # a selector or an operation that names nothing is a ValueError: final for a finished model, but
            # expected where `configure_model` has yet to build layers; `on_fit_start` then checks again
            if not self._builds_late:
                raise

    def _set_up_fit(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        rules = [rule for callback in _engine_callbacks(trainer) for rule in callback.rules_for(pl_module)]
        refuse_unsupported_strategy(
            trainer.strategy,
            is_static=all(rule.is_static for rule in rules) and not len(self._actions),
            reshapes=any(action.reshapes for action in self._actions),
        )
        self._active_rules = active_rules_of(rules)
        self._metrics = MetricWatch([*self._active_rules, *self._actions])
        self._followers = Followers(self._active_rules, self._actions)
        self._is_set_up = True
        self._bind(trainer, pl_module)

    def _set_up_late(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Set up again in `on_fit_start`, after `configure_model` has built the module."""
        for action in self._actions:
            action.setup(trainer, pl_module, "fit")
        if self._is_set_up:
            self._bind(trainer, pl_module)
            return
        self._set_up_fit(trainer, pl_module)  # in `setup` the rules could not be made yet
        if self._loaded_state:
            self._restore(self._loaded_state)

    def state_dict(self) -> dict[str, object]:
        """Latches and release steps of all rules, and the state of all actions, in plain types."""
        if not self._active_rules and not len(self._actions):
            return dict(self._last_state)  # `trainer.save_checkpoint` after the fit
        return checkpoint_state.save(self._active_rules, self._actions, self._metrics)

    def on_load_checkpoint(self, trainer: object, pl_module: object, checkpoint: SavedState) -> None:
        """Refuse state of an older version; without any state, everything starts from the schedule."""
        states = checkpoint["callbacks"]
        if self._is_fit and self.state_key not in states:
            checkpoint_identity.refuse_state_of_old_key(states)
            self._restore(checkpoint_state.EMPTY)

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Restore the latches of every rule; `on_train_start` then holds accordingly."""
        if self._is_fit:
            checkpoint_identity.refuse_other_format(state_dict)
            self._restore(state_dict)
            self._has_resumed = True

    def _restore(self, state: SavedState) -> None:
        self._loaded_state = state
        self._unmatched = checkpoint_state.restore(self._active_rules, self._actions, self._metrics, state)

    def on_fit_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Put every parameter that may thaw into an optimizer; set up modules built after `setup`."""
        if self._builds_late:
            before = _flags(pl_module)
            self._set_up_late(trainer, pl_module)
            if before != _flags(pl_module):
                ddp_wrapper.rebuild(trainer.strategy)
        self._followers.prepare(
            StepContext(trainer, pl_module, trainer_clock.moment(trainer)), self._listeners
        )

    def on_train_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """On a resume, hold what the checkpoint held. Stop the norm layers of what is held, and log it.

        Not earlier, because an optimizer that is built from what is trainable must be the same as when the
        run started, or the state in the checkpoint would not fit it.
        """
        self._wait, self._boundaries = 1, trainer_clock.StepBoundaries(trainer)
        idle_schedules.refuse_replaced(self._active_rules, pl_module)
        context, before = StepContext(trainer, pl_module, trainer_clock.moment(trainer)), _flags(pl_module)
        for active in self._active_rules:
            active.resume(context.moment)
        self._actions.resume(context)
        if self._loaded_state and trainer.is_global_zero:
            checkpoint_state.warn(self._active_rules, self._unmatched, context.moment)
        self._followers.begin(context, has_changed=before != _flags(pl_module))
        self._arm()

    def on_train_epoch_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Check the schedules at the next batch, since some count epochs."""
        idle_schedules.refuse_replaced(self._active_rules, pl_module)
        self._wait = 1
        self._boundaries.begin_epoch()
        self._followers.optimizers.keep_up()
        self._reassert()

    def on_train_batch_start(
        self, trainer: TrainerLike, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Count down to the next step at which something may change."""
        self._wait -= 1
        if self._wait <= 0 or trainer.accumulate_grad_batches != self._boundaries.window:
            self._play(trainer, pl_module, batch_idx)

    def on_validation_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Remember which metrics were logged before validation."""
        self._metrics.note_validation_start(trainer)

    def on_validation_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Pass the metrics to the rules and actions that wait for one."""
        if trainer.sanity_checking:
            self._metrics.refuse_misspelt(trainer)
        elif self._metrics.observe_validation(trainer):
            self._wait = 1
        self._reassert()

    def on_train_epoch_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Pass the training metrics to what waits for one; a name that is still unknown is an error."""
        if self._metrics.observe_epoch(trainer):
            self._wait = 1

    def on_train_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Let the actions log what they did not get to."""
        for action in self._actions:
            action.end(trainer)

    def on_exception(
        self, trainer: TrainerLike, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restore the model when a run fails."""
        self._disband()

    def teardown(self, trainer: TrainerLike, pl_module: LightningModule, stage: str) -> None:
        """Restore the model when a run has ended."""
        self._disband()

    def _bind(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Find the parameters of every rule, and hold what the current moment requires."""
        for active in self._active_rules:
            if active.bind(pl_module):
                active.hold.watch(self._on_intrusion)
        refuse_overlap(self._active_rules)
        follow_all(self._active_rules, trainer_clock.moment(trainer))
        if self._active_rules and not len(self._actions):  # an action may thaw something before that
            idle_schedules.refuse_idle_phase(self._active_rules, pl_module)

    def _play(self, trainer: TrainerLike, pl_module: LightningModule, batch_idx: int) -> None:
        """Apply what is due between two optimizer steps, and compute when to check again."""
        if self._has_resumed:
            self._has_resumed = False
            self._metrics.warn_of_lost_validation(trainer, batch_idx)
        self._wait = self._boundaries.num_batches_before(trainer, batch_idx)
        if self._wait:
            return
        moment = trainer_clock.moment(trainer)
        context = StepContext(trainer, pl_module, moment)
        with ledger.flips() as flips:
            follow_all(self._active_rules, moment)
            outcome = self._actions.perform(context)
        if self._followers.follow(context, flips, outcome):
            self._arm()
        self._followers.optimizers.keep_up()
        steps = [*(active.next_step(moment) for active in self._active_rules)]
        steps += self._actions.next_steps(moment)
        is_restless = any(steps) and not pl_module.automatic_optimization
        if is_restless or self._followers.optimizers.restores_values:
            self._wait = 1  # under manual optimization a batch may take any number of optimizer steps
        else:
            self._wait = self._boundaries.num_batches_until(steps, moment.optimizer_step)

    def _arm(self) -> None:
        """Install the per-step hooks that are needed now, and no others.

        Lightning looks a hook up on the instance at every call and skips what is not callable. Setting the
        attribute to None turns the hook off, profiler entry included; a method that returns at once would
        still cost a call at every step.
        """
        has_ending = self._followers.optimizers.acts_each_step or self._actions.listens_to_loss
        self.on_train_batch_end = self._end_batch if has_ending else None
        wanting = [action for action in self._actions if action.wants_gradients]
        wants_gradients = self._intrusions.is_pending or bool(wanting)
        self.on_before_optimizer_step = self._look_at_gradients if wants_gradients else None

    def _end_batch(
        self, trainer: TrainerLike, pl_module: LightningModule, outputs: object, *_: object
    ) -> None:
        """Record the loss for the actions that wait for it, and set the learning rates again."""
        if self._actions.note_loss(trainer, outputs, self._boundaries.window):
            self._wait = min(self._wait, 1 + trainer_clock.window_length(trainer))
        if self._followers.optimizers.acts_each_step:
            self._followers.optimizers.keep_up()
        else:
            self._arm()

    def _look_at_gradients(
        self, trainer: TrainerLike, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Undo an intrusion, and pass the gradients to the actions that want them."""
        self._reassert()
        for action in self._actions:
            if action.wants_gradients:
                action.before_optimizer_step(optimizer)
        self._arm()

    def _on_intrusion(self) -> None:
        """A held parameter received a gradient: have it frozen again before the optimizer steps."""
        self._intrusions.is_pending = True
        self._arm()

    def _reassert(self) -> None:
        """Freeze again what other code switched on, and warn once."""
        was_pending = self._intrusions.is_pending
        holds = [active.hold for active in self._active_rules]
        holds += [hold for action in self._actions for hold in action.holds]
        self._intrusions.undo(holds, self._followers.announcer)
        if was_pending:
            self._arm()

    def _disband(self) -> None:
        self._last_state = self.state_dict()
        for active in self._active_rules:
            active.leave()
        self._actions.leave()
        self._followers.release()
        self.on_before_optimizer_step = self.on_train_batch_end = None
        self._active_rules, self._listeners, self._actions, self._loaded_state = [], [], Actions([]), {}
        self._followers = Followers([], self._actions)
        self._intrusions, self._has_resumed = Intrusions(), False


def _engine_callbacks(trainer: TrainerLike) -> list[EngineCallback]:
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, EngineCallback)]


def _flags(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]
