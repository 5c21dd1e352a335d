"""What follows a change of flags or shapes: optimizers, norm layers, DDP wrapper, log, listeners."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Protocol

from torch import nn
from torch.nn import Parameter

from lighter_freezers.callbacks import _forecast
from lighter_freezers.callbacks._acts import Acts, Outcome, Stage
from lighter_freezers.callbacks._announcement import Announcer
from lighter_freezers.callbacks._optimizers import OptimizerFollower
from lighter_freezers.callbacks._player import Player, num_transitions
from lighter_freezers.callbacks._transition import Transition
from lighter_freezers.transitions import ddp_wrapper
from lighter_freezers.transitions.compiled_graphs import CompiledGraphs
from lighter_freezers.transitions.gradient_boundary import GradientBoundary
from lighter_freezers.transitions.norm_layers import FrozenNorms
from lighter_freezers.triggers import Moment

__all__ = ["Change", "Followers", "TransitionListener"]

Change = tuple[Player, list[Parameter], list[Parameter]]  # who froze and thawed what


class TransitionListener(Protocol):
    """A callback that wants to be told of transitions."""

    def on_transition(self, trainer: Any, pl_module: Any, transition: Transition) -> None:
        """Called on every rank after each transition, and once when training starts."""


class Followers:
    """All that is brought in line with what the rules and acts of one fit have changed.

    Args:
        players: The rules.
        acts: The acts.
    """

    def __init__(self, players: Sequence[Player], acts: Acts) -> None:
        self._players = players
        self._acts = acts
        self._listeners: list[TransitionListener] = []
        self._norms = FrozenNorms(nn.Module(), [])
        self._boundary = GradientBoundary(nn.Module())
        self._graphs = CompiledGraphs(nn.Module())
        self.optimizers = OptimizerFollower([])
        self.announcer = Announcer(nn.Module(), [])

    def prepare(self, stage: Stage, listeners: Sequence[TransitionListener]) -> None:
        """The fit begins: groups in the optimizers, and the norm layers that may have to stand still."""
        self._listeners = list(listeners)
        self.optimizers = OptimizerFollower(self._players)
        self.optimizers.prepare(stage.trainer, stage.model, self._acts.trainable_later(stage.model))
        self._acts.start(stage)
        selections = [(player.hold.parameters, player.rule.frozen_norms) for player in self._players]
        selections += [(act.freezable(stage.model), "eval") for act in self._acts]
        self._norms = FrozenNorms(stage.model, selections)
        if self._players or len(self._acts):
            self._boundary = GradientBoundary(stage.model, is_silent=not stage.trainer.is_global_zero)
        if stage.trainer.is_global_zero:
            self._graphs = CompiledGraphs(stage.model)
            self._graphs.warn_of_schedule(num_transitions([player.rule for player in self._players]))

    def begin(self, stage: Stage, *, has_changed: bool) -> None:
        """Training begins, everything is loaded: follow what is held now, and report it."""
        if has_changed:
            ddp_wrapper.rebuild(stage.trainer.strategy)
        self._norms.follow()
        self.optimizers.follow(stage.model)
        self._follow_gradients(stage.moment)
        self.announcer = Announcer(stage.model, self._players, list(self._acts))
        frozen = [parameter for parameter in stage.model.parameters() if not parameter.requires_grad]
        ranks = {name: rank for act in self._acts for name, rank in act.ranks.items()}
        self._announce(stage, self.announcer.transition(stage.moment, frozen, [], True, Outcome(ranks=ranks)))

    def follow(self, stage: Stage, changes: Sequence[Change], outcome: Outcome) -> None:
        """Bring everything in line, once for all rules and acts."""
        if outcome.is_reshaped:
            for player in self._players:
                player.bind(stage.model)
            self._boundary.forget()
            self.announcer = Announcer(stage.model, self._players, list(self._acts))
        frozen, thawed = _net_changes(changes, outcome)
        if frozen:
            _forecast.refuse_idle_now(stage.model, stage.moment)
            self.optimizers.forget(changes)
        self._norms.follow()
        self.optimizers.follow(stage.model, is_reshaped=outcome.is_reshaped)
        self._follow_gradients(stage.moment)
        if stage.is_freed:
            ddp_wrapper.put_on(stage.trainer.strategy)
        elif frozen or thawed:
            ddp_wrapper.rebuild(stage.trainer.strategy)
        self._announce(stage, self.announcer.transition(stage.moment, frozen, thawed, False, outcome))

    def release(self) -> None:
        """The fit is over."""
        self._norms.resume()
        self._boundary.remove()
        self.optimizers.release()

    def _follow_gradients(self, moment: Moment) -> None:
        never = [p for p in self._players if p.rule.cut_gradient == "never" and p.hold.is_active]
        self._boundary.follow(refusing=[each for player in never for each in player.hold.parameters])
        self._graphs.follow(moment.optimizer_step)

    def _announce(self, stage: Stage, transition: Transition) -> None:
        is_worth_a_line = self._players or len(self._acts) or not transition.is_initial
        if stage.trainer.is_global_zero and is_worth_a_line:
            self.announcer.log_lines(transition)
        for listener in self._listeners:
            listener.on_transition(stage.trainer, stage.model, transition)


def _net_changes(changes: Sequence[Change], outcome: Outcome) -> tuple[list[Parameter], list[Parameter]]:
    """What froze and what thawed after all, each once: a rule may hold what another has just let go."""
    frozen = [parameters for _, parameters, _ in changes if parameters]
    thawed = [parameters for _, _, parameters in changes if parameters]
    if len(frozen) + len(thawed) == 1 and not (outcome.frozen or outcome.thawed):
        return list(chain(*frozen)), list(chain(*thawed))  # nobody else touched them
    still_frozen = [parameter for parameter in chain(*frozen) if not parameter.requires_grad]
    still_thawed = [parameter for parameter in chain(*thawed) if parameter.requires_grad]
    return _distinct([*still_frozen, *outcome.frozen]), _distinct([*still_thawed, *outcome.thawed])


def _distinct(parameters: Iterable[Parameter]) -> list[Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())
