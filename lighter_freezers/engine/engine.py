"""One engine per Trainer: it hears the clock for all rules and acts, and makes one transition of them.

It adds itself to `trainer.callbacks` during `setup`, next to the first callback of ours. The callbacks that
bring them have no per-step hook at all, so ten of them cost no more than one.
"""

from typing import Any

from torch import nn

from lighter_freezers._lightning import Callback
from lighter_freezers.engine import idle_schedules, ledger, trainer_clock
from lighter_freezers.engine.actions import Action, ActionResult, Actions, StepContext
from lighter_freezers.engine.effects import ddp_wrapper
from lighter_freezers.engine.followers import Change, Followers, TransitionListener
from lighter_freezers.engine.metric_watch import MetricWatch
from lighter_freezers.engine.rules import ActiveRule, FreezeRule, active_rules_of, refuse_overlap
from lighter_freezers.engine.triggers import Moment

__all__ = ["EngineCallback", "Engine"]

_NEVER = 2**29  # batches: after these it looks again; a small int counts down faster than a large one


class EngineCallback(Callback):
    """A callback that brings freezing rules or acts; the engine of its Trainer plays them."""

    def rules(self) -> list[FreezeRule]:
        """The rules, made from the arguments alone."""
        return []

    def rules_for(self, model: nn.Module) -> list[FreezeRule]:
        """The rules for one model, for callbacks that have to see it before they can make them."""
        return self.rules()

    def actions(self) -> list[Action]:
        """The acts, made anew from the arguments alone: one fit, or one validation, asks once for them."""
        return []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make sure that the Trainer has an engine."""
        Engine.of(trainer)


class Engine(Callback):
    """Plays the rules and acts of all `EngineCallback` callbacks of one Trainer.

    Runs on: `setup` (hold what the first step holds, before the optimizer, the sanity check and the DDP
    wrapper), `on_fit_start` (optimizer groups), `on_train_start` (after a resume, hold what the checkpoint
    held), `on_train_batch_start` (transitions, between optimizer steps only).
    """

    def __init__(self) -> None:
        self._active_rules: list[ActiveRule] = []
        self._actions = Actions([])
        self._listeners: list[TransitionListener] = []
        self._followers = Followers([], self._actions)
        self._metrics = MetricWatch([])
        self._wait = 1  # batches until something may change
        self._builds_late = self._is_set_up = False
        self._loaded_state: dict[str, Any] = {}
        self._has_resumed = False
        self._is_intruded = False
        self._has_warned = False
        self._last_state: dict[str, Any] = {}

    @classmethod
    def of(cls, trainer: Any) -> "Engine":
        """The engine of a Trainer, added next to the first callback of ours if there is none yet."""
        for callback in trainer.callbacks:
            if isinstance(callback, cls):
                return callback
        engine = cls()
        ours = [index for index, callback in enumerate(trainer.callbacks) if _asks_in_setup(callback)]
        # behind the callback whose `setup` runs now, since Lightning is iterating over this list
        trainer.callbacks.insert(ours[0] + 1, engine)
        return engine

    def add_listener(self, listener: TransitionListener) -> None:
        """Tell a callback of the transitions of this fit. To be called in its `setup`."""
        self._listeners.append(listener)

    @property
    def active_rules(self) -> list[ActiveRule]:
        """The rules of this fit, at work."""
        return self._active_rules

    @property
    def actions(self) -> list[Action]:
        """The acts of this fit."""
        return list(self._actions)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Select and hold what the first step holds."""
        self._builds_late = "core.hooks" not in type(pl_module).configure_model.__module__
        engine_callbacks = _engine_callbacks(trainer)
        self._actions = Actions([action for callback in engine_callbacks for action in callback.actions()])
        self._is_set_up = False
        try:
            for action in self._actions:
                action.on_intrusion = self._on_intrusion
                action.setup(trainer, pl_module, stage)
            if stage == "fit":
                self._set_up_fit(trainer, pl_module)
        except ValueError:
            if not self._builds_late:
                raise

    def _set_up_fit(self, trainer: Any, pl_module: Any) -> None:
        rules = [rule for callback in _engine_callbacks(trainer) for rule in callback.rules_for(pl_module)]
        ddp_wrapper.refuse_unsupported_strategy(
            trainer.strategy,
            is_static=all(rule.is_static for rule in rules) and not len(self._actions),
            reshapes=any(action.reshapes for action in self._actions),
        )
        self._active_rules = active_rules_of(rules)
        self._metrics = MetricWatch([*self._active_rules, *self._actions])
        self._followers = Followers(self._active_rules, self._actions)
        self._is_set_up = True
        self._bind(trainer, pl_module)

    def _set_up_late(self, trainer: Any, pl_module: Any) -> None:
        """Once more, now that the module is built."""
        for action in self._actions:
            action.setup(trainer, pl_module, "fit")
        if self._is_set_up:
            self._bind(trainer, pl_module)
            return
        self._set_up_fit(trainer, pl_module)  # the rules could not be made before
        if self._loaded_state:
            self.load_state_dict(self._loaded_state)

    def state_dict(self) -> dict[str, Any]:
        """Latches and release steps of all rules, and what acts have done, in plain types."""
        if not self._active_rules and not len(self._actions):
            return self._last_state  # `trainer.save_checkpoint` after the fit
        active_rules = {active.key: active.state() for active in self._active_rules}
        validated_at = self._metrics.validated_at
        return {"players": active_rules, "validated_at": validated_at, **self._actions.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give every rule its latches back; `on_train_start` lets it hold accordingly."""
        for active in self._active_rules:
            if active.key in state_dict["players"]:
                active.remember(state_dict["players"][active.key])
        self._actions.remember(state_dict)
        self._metrics.validated_at = state_dict["validated_at"]
        self._has_resumed = True
        self._loaded_state = state_dict

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Put every parameter that may thaw into an optimizer; catch up with modules built since `setup`."""
        if self._builds_late:
            before = _flags(pl_module)
            self._set_up_late(trainer, pl_module)
            if before != _flags(pl_module):
                ddp_wrapper.rebuild(trainer.strategy)
        self._followers.prepare(
            StepContext(trainer, pl_module, trainer_clock.moment(trainer)), self._listeners
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Resume: hold what the checkpoint held. Stop the norm layers of what is held, and report.

        Not earlier, because an optimizer that is built from what is trainable must be the same as when the
        run began, or the state in the checkpoint would not fit it.
        """
        self._wait = 1
        context, before = StepContext(trainer, pl_module, trainer_clock.moment(trainer)), _flags(pl_module)
        for active in self._active_rules:
            active.resume(context.moment)
        self._actions.resume(context, trainer_clock.window_length(trainer))
        self._arm()
        self._followers.begin(context, has_changed=before != _flags(pl_module))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the schedules again, for epochs count."""
        self._wait = 1
        self._reassert()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count down to the next step at which something may change."""
        self._wait -= 1
        if self._wait <= 0:
            self._play(trainer, pl_module, batch_idx)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember which metrics there were before."""
        self._metrics.note_validation_start(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Show the metrics to the rules that wait for one."""
        if trainer.sanity_checking:
            self._metrics.refuse_misspelt(trainer)
        elif self._metrics.observe_validation(trainer):
            self._wait = 1
        self._reassert()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Show the training metrics to the rules that wait for one; an unknown name is an error by now."""
        if self._metrics.observe_epoch(trainer):
            self._wait = 1

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let the acts say what is left of them."""
        for action in self._actions:
            action.end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the model in order when a run breaks off."""
        self._disband()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the model in order when a run is over."""
        self._disband()

    def _bind(self, trainer: Any, pl_module: Any) -> None:
        """Find the parameters, and hold what this moment holds."""
        for active in self._active_rules:
            if active.bind(pl_module):
                active.hold.watch(self._on_intrusion)
        refuse_overlap(self._active_rules)
        self._follow(trainer_clock.moment(trainer))
        if self._active_rules and not len(self._actions):  # an act may thaw something in time
            idle_schedules.refuse_idle_phase(self._active_rules, pl_module)

    def _follow(self, moment: Moment) -> list[Change]:
        """Let every rule do what it says for this moment; returns who froze and thawed what."""
        changes = ((active, *active.follow(moment)) for active in self._active_rules)
        return [(active, frozen, thawed) for active, frozen, thawed in changes if frozen or thawed]

    def _play(self, trainer: Any, pl_module: Any, batch_idx: int) -> None:
        """Between two optimizer steps: change what has to change, and see when to look again."""
        if self._has_resumed:
            self._has_resumed = False
            self._metrics.warn_of_lost_validation(trainer, batch_idx)
        window = trainer_clock.window_length(trainer)
        if batch_idx % window:
            self._wait = window - batch_idx % window
            return
        moment = trainer_clock.moment(trainer)
        changes, context = self._follow(moment), StepContext(trainer, pl_module, moment)
        outcome = self._actions.perform(context)
        if changes or outcome:
            self._followers.follow(context, changes, outcome or ActionResult())
            self._arm()
        self._followers.optimizers.set_learning_rates(moment.optimizer_step)
        steps = [
            step for step in (active.next_step(moment) for active in self._active_rules) if step is not None
        ]
        steps += self._actions.next_steps(moment)
        if self._followers.optimizers.sets_learning_rates or (steps and not pl_module.automatic_optimization):
            self._wait = 1  # under manual optimisation a batch may be any number of optimizer steps
        else:
            num_steps = min(steps, default=_NEVER) - moment.optimizer_step
            self._wait = min(num_steps * window, _NEVER)

    def _arm(self) -> None:
        """Have the per-step hooks that somebody needs now, and no others."""
        has_ending = self._followers.optimizers.sets_learning_rates or self._actions.listens_to_loss
        self.on_train_batch_end = self._end_batch if has_ending else None
        wants_gradients = self._is_intruded or any(action.wants_gradients for action in self._actions)
        self.on_before_optimizer_step = self._look_at_gradients if wants_gradients else None

    def _end_batch(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Keep the loss for the acts that wait for it, and the learning rates in force."""
        if self._actions.note_loss(trainer, outputs):
            self._wait = min(self._wait, 1 + trainer_clock.window_length(trainer))
        if self._followers.optimizers.sets_learning_rates:
            self._followers.optimizers.set_learning_rates(trainer_clock.moment(trainer).optimizer_step)

    def _look_at_gradients(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Undo an intrusion, and show the gradients to the acts that want to see them."""
        self._reassert()
        for action in self._actions:
            if action.wants_gradients:
                action.before_optimizer_step(optimizer)
        self._arm()

    def _on_intrusion(self) -> None:
        """A held parameter got a gradient: undo it before the optimizer sees it."""
        self._is_intruded = True
        self._arm()

    def _reassert(self) -> None:
        """Freeze again what somebody else switched on, and warn once."""
        if self._is_intruded:
            self._is_intruded = False
            self._arm()
        holds = [active.hold for active in self._active_rules]
        holds += [hold for action in self._actions for hold in action.holds]
        for hold in holds:
            if hold.is_active:
                intruded = ledger.reassert(hold.parameters)
                if intruded and not self._has_warned:
                    self._has_warned = True
                    self._followers.announcer.warn_of_intrusion(intruded)

    def _disband(self) -> None:
        self._last_state = self.state_dict()
        for active in self._active_rules:
            active.leave()
        self._actions.leave()
        self._followers.release()
        self.on_before_optimizer_step = self.on_train_batch_end = None
        self._active_rules, self._listeners, self._actions = [], [], Actions([])
        self._followers = Followers([], self._actions)
        self._has_warned = self._has_resumed = self._is_intruded = False
        self._loaded_state = {}


def _asks_in_setup(callback: Any) -> bool:
    """Whether it is one of ours with a `setup`: each of these asks for the engine there."""
    return isinstance(callback, Callback) and type(callback).setup is not Callback.setup


def _engine_callbacks(trainer: Any) -> list[EngineCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, EngineCallback)]


def _flags(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]
