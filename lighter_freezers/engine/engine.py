"""One engine per Trainer: tracks steps and epochs for every rule and action, applies all changes together.

It adds itself to `trainer.callbacks` during `setup`, next to the first callback of ours. Callbacks that bring
rules or actions have no per-step hook of their own, so ten of them cost no more than one.
"""

from functools import partial

from torch import nn
from torch.optim import Optimizer

from lighter_freezers._lightning import Callback, LightningModule
from lighter_freezers.engine import averaging, baselines, checkpoint_state, ledger, trainer_clock
from lighter_freezers.engine.actions import Action, StepContext
from lighter_freezers.engine.checkpoint_identity import STATE_KEY
from lighter_freezers.engine.damaged_checkpoint import explain
from lighter_freezers.engine.effects import ddp_wrapper
from lighter_freezers.engine.effects.module_hooks import call_after, forget_calls, is_overridden
from lighter_freezers.engine.effects.saved_groups import Checkpoint
from lighter_freezers.engine.fit import EachBatch, Fit
from lighter_freezers.engine.followers import TransitionListener
from lighter_freezers.engine.rules import ActiveRule, FreezeRule
from lighter_freezers.engine.run_shares import RunShares
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike, callbacks_of, stand_before
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.selection.names import canonical_parameters

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

    def on_fit_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Fail before training if the engine is not in the Trainer, or was not set up.

        Raises:
            RuntimeError: Nothing would freeze.
        """
        engines = [each for each in callbacks_of(trainer) if isinstance(each, Engine)]
        if not any(engine.is_set_up_for(pl_module) for engine in engines):
            raise RuntimeError(
                f"{type(self).__name__} would do nothing in this run: the engine that it adds to the Trainer "
                "in `setup` was never set up. Other code replaced `trainer.callbacks` or ran `setup` on a "
                "copy of it: change that list in place. A `setup` of your own calls `super().setup(...)`."
            )


class Engine(Callback):
    """Applies the rules and actions of all `EngineCallback` callbacks of one Trainer.

    Runs on: `setup` (hold what the first step holds, before the optimizer, the sanity check and the DDP
    wrapper), `on_fit_start` (optimizer groups), `on_train_start` (after a resume, hold what the checkpoint
    held), `on_train_batch_start` (transitions, between optimizer steps only).
    """

    state_key = STATE_KEY  # no property, because Lightning reads it at every hook

    def __init__(self) -> None:
        self._fit = Fit()
        self._listeners: list[TransitionListener] = []
        self._wait = 1  # batches until something may change
        self._builds_late = self._is_fit = self._has_resumed = self._has_begun = self._is_driven = False
        self._run: tuple[TrainerLike, LightningModule] | None = None  # the one under way
        self._state = checkpoint_state.RunState()

    @classmethod
    def of(cls, trainer: TrainerLike) -> "Engine":
        """The engine of a Trainer, added next to the first callback of ours if there is none yet."""
        callbacks = callbacks_of(trainer)
        if present := [each for each in callbacks if isinstance(each, cls)]:
            return present[0]
        is_ours = [isinstance(one, Callback) and type(one).setup is not Callback.setup for one in callbacks]
        # after the first of ours with a `setup`: it runs now, and Lightning is iterating over this list
        engine, place = cls(), is_ours.index(True) + 1 if any(is_ours) else len(callbacks)
        callbacks[place:place] = [engine, *averaging.AverageKeeper.where_needed(trainer, engine)]
        return engine

    @property
    def shares(self) -> RunShares:
        """Resolves shares of this run, once training starts."""
        assert self._run
        return self._fit.shares.begin(*self._run)

    def add_listener(self, listener: TransitionListener) -> None:
        """Notify a callback of the transitions of this fit. It calls this in its `setup`."""
        self._listeners.append(listener)

    def follow_steps(self, call: EachBatch) -> None:
        """Call a function after each batch from now on, until it returns False."""
        self._fit.each_batch.append(call)
        self._arm()

    @property
    def active_rules(self) -> list[ActiveRule]:
        """The rules of this fit, bound to the model."""
        return self._fit.active_rules

    @property
    def actions(self) -> list[Action]:
        """The actions of this fit."""
        return list(self._fit.actions)

    def setup(self, trainer: TrainerLike, pl_module: LightningModule, stage: str) -> None:
        """Select the parameters of every rule, and hold what the first step holds."""
        self._is_fit, self._run = stage == "fit", (trainer, pl_module)
        baselines.adopt(pl_module)
        if self._is_fit:
            self._state.begin(trainer, pl_module)
        self._builds_late = is_overridden(pl_module, "configure_model")
        self._built: dict[str, int] | None = None
        self._fit = Fit([each for ours in _engine_callbacks(trainer) for each in ours.actions()])
        stand_before(trainer, self, self._fit.followed_by)
        for action in self.actions:
            action.on_intrusion = self._on_intrusion
        has_own_setup = is_overridden(pl_module, "setup")
        self._set_up(stage, is_final=not (self._builds_late or has_own_setup))
        if has_own_setup:  # it runs next, and may build layers
            call_after(pl_module, "setup", lambda: self._set_up(stage, is_final=not self._builds_late))

    def _set_up(self, stage: str, *, is_final: bool) -> None:
        """Set actions and rules up on what the model has by now, if it has changed since the last time."""
        assert self._run
        trainer, model = self._run
        if self._built == (built := {name: id(p) for name, p in canonical_parameters(model).items()}):
            return
        try:
            for action in self.actions:
                action.leave()  # what it held of a module that was not finished
                action.setup(trainer, model, stage)
            if stage == "fit":
                self._set_up_fit(trainer, model, has_grown=built.keys() != (self._built or {}).keys())
            self._built = built
        except (ValueError, RuntimeError):
            if is_final:  # else layers that rules name may have yet to be built
                raise

    def _set_up_fit(self, trainer: TrainerLike, pl_module: LightningModule, *, has_grown: bool) -> None:
        if has_grown:  # else the names are the same, perhaps of other tensors
            for active in self.active_rules:
                active.hold.let_go()
            brought = [each.rules_for(pl_module) for each in _engine_callbacks(trainer)]
            self._fit = Fit(self.actions, [rule for rules in brought for rule in rules])
            self._fit.check_strategy(trainer)
            self._state.load_again(self._fit)
        self._fit.bind(pl_module, trainer_clock.moment(trainer), self._on_intrusion)

    def is_set_up_for(self, model: nn.Module) -> bool:
        """Whether `setup` has run for the fit of this module."""
        return self._is_fit and self._run is not None and self._run[1] is model

    def state_dict(self) -> dict[str, object]:
        """Latches and release steps of all rules, and the state of all actions, in plain types."""
        return self._state.current(self._run[0] if self._is_fit and self._run else None, self._fit)

    def on_save_checkpoint(self, trainer: TrainerLike, pl_module: object, checkpoint: Checkpoint) -> None:
        """Store the optimizers' state by the names of the parameters."""
        self._state.save_groups(trainer, self._fit, checkpoint)

    def on_load_checkpoint(self, trainer: TrainerLike, pl_module: object, checkpoint: Checkpoint) -> None:
        """Refuse state of an older version; without any state, everything starts from the schedule."""
        if self._is_fit:
            self._state.look_at(trainer, self._fit, checkpoint)

    def load_state_dict(self, state_dict: SavedState) -> None:
        """Restore the latches of every rule; `on_train_start` then holds accordingly."""
        if self._is_fit:
            self._state.load(self._fit, state_dict)
            self._has_resumed = True

    def on_fit_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Put every parameter that may thaw into an optimizer; set up modules built after `setup`."""
        with ledger.flips() as flips:
            if self._builds_late:
                self._set_up("fit", is_final=True)
        if any(flips.net):
            ddp_wrapper.rebuild(trainer.strategy)
        context = StepContext(trainer, pl_module, trainer_clock.moment(trainer))
        self._fit.prepare(context, self._listeners)
        self._state.map_groups(trainer, self._fit.followers.optimizers.group_names)
        self._state.await_shards(trainer, pl_module, self._fit)

    def on_train_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """On a resume, hold what the checkpoint held. Stop the norm layers of what is held, and log it.

        Not earlier, because an optimizer that is built from what is trainable must be the same as when the
        run started, or the state in the checkpoint would not fit it.
        """
        self._has_begun = True
        self._state.carry_over(self._fit)
        self._wait, self._boundaries = 1, trainer_clock.StepBoundaries(trainer)
        context = StepContext(trainer, pl_module, trainer_clock.moment(trainer))
        with ledger.flips() as flips:
            self._fit.resume(context)
        self._fit.metrics.catch_up(trainer)
        if trainer.is_global_zero:
            self._state.warn_of_changes(self._fit, context.moment)
        self._fit.followers.begin(context, has_changed=any(flips.net))
        self._arm()

    def on_train_epoch_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Check the schedules at the next batch, since some count epochs."""
        self._wait = 1
        self._boundaries.begin_epoch()
        self._fit.begin_epoch(trainer, pl_module)
        self._reassert()

    def on_train_batch_start(
        self, trainer: TrainerLike, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Count down to the next step at which something may change."""
        self._wait = wait = self._wait - 1
        if wait <= 0 or trainer.accumulate_grad_batches != self._window:
            self._play(trainer, pl_module, batch_idx)

    def on_validation_start(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Remember which metrics were logged before validation."""
        self._fit.metrics.note_validation_start(trainer)

    def on_validation_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Pass the metrics to the rules and actions that wait for one."""
        if trainer.sanity_checking:
            self._fit.metrics.check_sanity(trainer)
        elif self._fit.metrics.observe_validation(trainer):
            self._wait = 1
        self._reassert()

    def on_train_epoch_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Pass the training metrics to what waits for one, once the module has logged its last."""
        if not self._is_driven:
            call_after(pl_module, "on_train_epoch_end", lambda: self._fit.metrics.observe_epoch(trainer))

    def on_train_end(self, trainer: TrainerLike, pl_module: LightningModule) -> None:
        """Let the actions log what they did not get to."""
        for action in self.actions:
            action.end(trainer)

    def on_exception(self, trainer: TrainerLike, pl_module: object, exception: BaseException) -> None:
        """Restore the model when a run fails; where its checkpoint could not be read, say why."""
        if not self._has_begun:
            explain(exception, trainer.ckpt_path)
        self._disband()

    def teardown(self, trainer: TrainerLike, pl_module: LightningModule, stage: str) -> None:
        """Restore the model when a run has ended."""
        self._disband()

    def drive(self) -> None:
        """From now on `advance` sets the moment, in place of the Trainer's batches and metrics."""
        self._is_driven = True
        self.__dict__["on_train_batch_start"] = None  # hides the method from Lightning
        self._arm()

    def advance(self, moment: Moment) -> bool:
        """Apply all that is due at a moment, between two optimizer steps; returns whether anything was."""
        assert self._run
        if has_moved := self._fit.advance(self._fit.context(*self._run, moment)):
            self._arm()
        return has_moved

    def next_step(self, moment: Moment) -> int | None:
        """The next optimizer step at which something may be due without a new epoch or metric value."""
        return min(self._fit.next_steps(moment), default=None)

    def _play(self, trainer: TrainerLike, pl_module: LightningModule, batch_idx: int) -> None:
        """Apply what is due between two optimizer steps, and compute when to check again."""
        self._fit.begin_stages(trainer, pl_module, partial(setattr, self, "_wait", 1))
        if self._fit.followers.optimizers.moves_between_steps:
            self._fit.followers.optimizers.keep_up()  # before LearningRateMonitor reads the rates
        if self._has_resumed:
            self._has_resumed = False
            self._fit.metrics.note_resumption(trainer, batch_idx)
        self._wait = self._boundaries.num_batches_before(trainer, batch_idx)
        self._window = self._boundaries.window
        if self._wait:
            return
        moment = trainer_clock.moment(trainer)
        self.advance(moment)
        steps, rates = self._fit.next_steps(moment), self._fit.followers.optimizers
        if (steps and not pl_module.automatic_optimization) or rates.moves_between_steps:
            self._wait = 1  # under manual optimization a batch may take any number of optimizer steps
        else:
            self._wait = self._boundaries.num_batches_until(steps, moment.optimizer_step)

    def _arm(self) -> None:
        """Install the per-step hooks needed now: a method that returns at once would cost a call per step."""
        acts = self._fit.step_loss is not None if self._is_driven else self._fit.acts_each_batch
        self.on_train_batch_end = self._end_batch if acts else None
        self.on_before_backward = self._fit.note_window if self._fit.listens_to_loss else None
        self.on_before_optimizer_step = self._look_at_gradients if self._fit.wants_gradients else None

    def _end_batch(self, trainer: TrainerLike, pl_module: object, outputs: object, *_: object) -> None:
        """Record the loss for the actions that wait for it, and set the learning rates again."""
        if self._is_driven:  # an action that waits for an average is passed one
            self._fit.note_step_loss(outputs)
            return
        if self._fit.note_loss(trainer, outputs):
            self._wait = min(self._wait, 1 + trainer_clock.window_length(trainer))
        if not self._fit.end_batch(trainer):
            self._arm()

    def _look_at_gradients(self, trainer: TrainerLike, model: LightningModule, optimizer: Optimizer) -> None:
        """Undo an intrusion, and pass the gradients to the actions that want them."""
        self._reassert()
        self._fit.show_gradients(self._fit.context(trainer, model, trainer_clock.moment(trainer)), optimizer)
        self._arm()

    def _on_intrusion(self) -> None:
        """A held parameter received a gradient: have it frozen again before the optimizer steps."""
        self._fit.intrusions.is_pending = True
        self._arm()

    def _reassert(self) -> None:
        """Freeze again what other code switched on, and warn once."""
        if self._fit.reassert():
            self._arm()

    def _disband(self) -> None:
        if self._run is None:
            return
        trainer, model = self._run
        if self._has_begun:
            self._state.end(trainer, model, self._fit)
        forget_calls(model)
        self._fit.leave(model)
        self.on_before_optimizer_step = self.on_train_batch_end = self.on_before_backward = None
        self.__dict__.pop("on_train_batch_start", None)
        self._fit, self._listeners, self._run = Fit(), [], None
        self._has_resumed = self._has_begun = self._is_driven = False


def _engine_callbacks(trainer: TrainerLike) -> list[EngineCallback]:
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, EngineCallback)]
