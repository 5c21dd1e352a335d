"""One conductor per Trainer: it hears the clock for all rules and makes one transition of their changes.

It adds itself to `trainer.callbacks` during `setup`, next to the first callback of ours. The callbacks that
bring the rules have no per-step hook at all, so ten of them cost no more than one.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn
from torch.nn import Parameter

from lighter_freezers import ledger
from lighter_freezers._lightning import Callback
from lighter_freezers.callbacks import _clock, _forecast
from lighter_freezers.callbacks._announcement import Announcer, warn_of_intrusion
from lighter_freezers.callbacks._metric_watch import MetricWatch
from lighter_freezers.callbacks._optimizers import OptimizerFollower
from lighter_freezers.callbacks._player import FreezeRule, Player
from lighter_freezers.callbacks._transition import Transition
from lighter_freezers.transitions import ddp_wrapper
from lighter_freezers.transitions.norm_layers import FrozenNorms
from lighter_freezers.triggers import Moment

__all__ = ["Conducted", "Conductor", "TransitionListener"]

_NEVER = 2**29  # batches: after these it looks again; a small int counts down faster than a large one


class TransitionListener(Protocol):
    """A callback that wants to be told of transitions."""

    def on_transition(self, trainer: Any, pl_module: Any, transition: Transition) -> None:
        """Called on every rank after each transition, and once when training starts."""


class Conducted(Callback):
    """A callback that brings freezing rules; the conductor of its Trainer plays them."""

    def rules(self) -> list[FreezeRule]:
        """The rules, made from the arguments alone."""
        raise NotImplementedError

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make sure that the Trainer has a conductor."""
        Conductor.of(trainer)


class Conductor(Callback):
    """Plays the rules of all `Conducted` callbacks of one Trainer.

    Runs on: `setup` (hold what the first step holds, before the optimizer, the sanity check and the DDP
    wrapper), `on_fit_start` (optimizer groups), `on_train_start` (after a resume, hold what the checkpoint
    held), `on_train_batch_start` (transitions, between optimizer steps only).
    """

    def __init__(self) -> None:
        self._players: list[Player] = []
        self._listeners: list[TransitionListener] = []
        self._norms = FrozenNorms(nn.Module(), [])
        self._optimizers = OptimizerFollower([])
        self._metrics = MetricWatch([])
        self._announcer = Announcer(nn.Module(), [])
        self._wait = 1  # batches until something may change
        self._builds_late = False
        self._has_resumed = False
        self._has_warned = False
        self._last_state: dict[str, Any] = {}

    @classmethod
    def of(cls, trainer: Any) -> "Conductor":
        """The conductor of a Trainer, added next to the first callback of ours if there is none yet."""
        for callback in trainer.callbacks:
            if isinstance(callback, cls):
                return callback
        conductor = cls()
        ours = [index for index, callback in enumerate(trainer.callbacks) if isinstance(callback, Callback)]
        # behind the callback whose `setup` runs now, since Lightning is iterating over this list
        trainer.callbacks.insert(ours[0] + 1, conductor)
        return conductor

    def add_listener(self, listener: TransitionListener) -> None:
        """Tell a callback of the transitions of this fit. To be called in its `setup`."""
        self._listeners.append(listener)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Select and hold what the first step holds."""
        if stage != "fit":
            return
        rules = [
            rule
            for callback in trainer.callbacks
            if isinstance(callback, Conducted)
            for rule in callback.rules()
        ]
        ddp_wrapper.refuse_unsupported_strategy(
            trainer.strategy, is_static=all(rule.is_static for rule in rules)
        )
        self._players = _players(rules)
        self._metrics = MetricWatch(self._players)
        self._builds_late = "core.hooks" not in type(pl_module).configure_model.__module__
        try:
            self._bind(trainer, pl_module)
        except ValueError:
            if not self._builds_late:
                raise

    def state_dict(self) -> dict[str, Any]:
        """Latches and release steps of all rules, in plain types."""
        if not self._players:
            return self._last_state  # `trainer.save_checkpoint` after the fit
        players = {player.key: player.state() for player in self._players}
        return {"players": players, "validated_at": self._metrics.validated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give every rule its latches back; `on_train_start` lets it hold accordingly."""
        for player in self._players:
            if player.key in state_dict["players"]:
                player.remember(state_dict["players"][player.key])
        self._metrics.validated_at = state_dict["validated_at"]
        self._has_resumed = True

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Put every parameter that may thaw into an optimizer; catch up with modules built since `setup`."""
        if self._builds_late:
            before = _flags(pl_module)
            self._bind(trainer, pl_module)
            if before != _flags(pl_module):
                ddp_wrapper.rebuild(trainer.strategy)
        self._optimizers = OptimizerFollower(self._players)
        self._optimizers.prepare(trainer, pl_module)
        if self._optimizers.sets_learning_rates:
            self.on_train_batch_end = self._set_learning_rates
        self._norms = FrozenNorms(
            pl_module, [(p.hold.parameters, p.rule.frozen_norms) for p in self._players]
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Resume: hold what the checkpoint held. Stop the norm layers of what is held, and report.

        Not earlier, because an optimizer that is built from what is trainable must be the same as when the
        run began, or the state in the checkpoint would not fit it.
        """
        self._wait = 1
        moment, before = _clock.moment(trainer), _flags(pl_module)
        for player in self._players:
            player.resume(moment)
        if before != _flags(pl_module):
            ddp_wrapper.rebuild(trainer.strategy)
        self._norms.follow()
        self._announcer = Announcer(pl_module, self._players)
        frozen = [parameter for parameter in pl_module.parameters() if not parameter.requires_grad]
        self._announce(trainer, pl_module, frozen, [], is_initial=True)

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

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the model in order when a run breaks off."""
        self._disband()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the model in order when a run is over."""
        self._disband()

    def _bind(self, trainer: Any, pl_module: Any) -> None:
        """Find the parameters, and hold what this moment holds."""
        for player in self._players:
            if player.bind(pl_module):
                player.hold.watch(self._on_intrusion)
        _refuse_overlap(self._players)
        self._follow(_clock.moment(trainer))
        if self._players:
            _forecast.refuse_idle_phase(self._players, pl_module)

    def _follow(self, moment: Moment) -> list[tuple[Player, list[Parameter], list[Parameter]]]:
        """Let every rule do what it says for this moment; returns who froze and thawed what."""
        changes = ((player, *player.follow(moment)) for player in self._players)
        return [(player, frozen, thawed) for player, frozen, thawed in changes if frozen or thawed]

    def _play(self, trainer: Any, pl_module: Any, batch_idx: int) -> None:
        """Between two optimizer steps: change what has to change, and see when to look again."""
        if self._has_resumed:
            self._has_resumed = False
            self._metrics.warn_of_lost_validation(trainer, batch_idx)
        window = _clock.window_length(trainer)
        if batch_idx % window:
            self._wait = window - batch_idx % window
            return
        moment = _clock.moment(trainer)
        changes = self._follow(moment)
        if changes:
            self._make_transition(trainer, pl_module, changes)
        self._optimizers.set_learning_rates(moment.optimizer_step)
        steps = [step for step in (player.next_step(moment) for player in self._players) if step is not None]
        if self._optimizers.sets_learning_rates or (steps and not pl_module.automatic_optimization):
            self._wait = 1  # under manual optimisation a batch may be any number of optimizer steps
        else:
            num_steps = min(steps, default=_NEVER) - moment.optimizer_step
            self._wait = min(num_steps * window, _NEVER)

    def _make_transition(
        self, trainer: Any, pl_module: Any, changes: list[tuple[Player, list[Parameter], list[Parameter]]]
    ) -> None:
        """Bring everything in line with the flags, once for all rules."""
        frozen = [
            parameter
            for _, parameters, _ in changes
            for parameter in parameters
            if not parameter.requires_grad
        ]
        thawed = [
            parameter for _, _, parameters in changes for parameter in parameters if parameter.requires_grad
        ]
        if frozen:
            _forecast.refuse_idle_now(pl_module, _clock.moment(trainer))
            self._optimizers.forget(changes)
        self._norms.follow()
        ddp_wrapper.rebuild(trainer.strategy)
        self._announce(trainer, pl_module, frozen, thawed)

    def _announce(
        self,
        trainer: Any,
        pl_module: Any,
        frozen: Sequence[Parameter],
        thawed: Sequence[Parameter],
        is_initial: bool = False,
    ) -> None:
        transition = self._announcer.transition(_clock.moment(trainer), frozen, thawed, is_initial)
        if trainer.is_global_zero and (self._players or not is_initial):
            self._announcer.log_line(transition)
        for listener in self._listeners:
            listener.on_transition(trainer, pl_module, transition)

    def _set_learning_rates(self, trainer: Any, *_: Any) -> None:
        self._optimizers.set_learning_rates(_clock.moment(trainer).optimizer_step)

    def _on_intrusion(self) -> None:
        """A held parameter got a gradient: undo it before the optimizer sees it."""
        self.on_before_optimizer_step = lambda *_: self._reassert()

    def _reassert(self) -> None:
        """Freeze again what somebody else switched on, and warn once."""
        self.on_before_optimizer_step = None
        for player in self._players:
            if player.hold.is_active:
                intruded = ledger.reassert(player.hold.parameters)
                if intruded and not self._has_warned:
                    self._has_warned = True
                    warn_of_intrusion(player, intruded)

    def _disband(self) -> None:
        self._last_state = self.state_dict()
        for player in self._players:
            player.leave()
        self._norms.resume()
        self._optimizers.release()
        self.on_before_optimizer_step = self.on_train_batch_end = None
        self._players, self._listeners = [], []
        self._announcer = Announcer(nn.Module(), [])
        self._has_warned = self._has_resumed = False


def _flags(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


def _players(rules: list[FreezeRule]) -> list[Player]:
    """One player per rule; equal rules get keys of their own, in their order."""
    seen: Counter[str] = Counter()
    players = []
    for rule in rules:
        seen[repr(rule)] += 1
        players.append(Player(rule, f"{rule!r}#{seen[repr(rule)]}"))
    return players


def _refuse_overlap(players: list[Player]) -> None:
    """Raise where two rules select a parameter and one of them does not want that."""
    owners: dict[int, Player] = {}
    for player in players:
        for name, parameter in player.selected.items():
            other = owners.setdefault(id(parameter), player)
            if other is not player and "error" in (other.rule.on_overlap, player.rule.on_overlap):
                raise ValueError(
                    f"{other.rule.title} and {player.rule.title} both select '{name}', "
                    "and on_overlap is 'error'. Exclude it from one of them, or set on_overlap='compose': "
                    "it is then frozen as long as either holds it."
                )
