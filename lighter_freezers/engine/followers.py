"""What follows a change of flags or shapes: optimizers, norm layers, DDP wrapper, log, listeners."""

from collections.abc import Sequence
from itertools import chain
from typing import Protocol

from torch import nn
from torch.nn import Parameter

from lighter_freezers.engine import idle_schedules
from lighter_freezers.engine.actions import ActionResult, Actions, StepContext
from lighter_freezers.engine.effects import ddp_wrapper
from lighter_freezers.engine.effects.backward_cut import GradientBoundary
from lighter_freezers.engine.effects.compiled_graphs import CompiledGraphs
from lighter_freezers.engine.effects.norm_layers import FrozenNorms
from lighter_freezers.engine.log_lines import Announcer
from lighter_freezers.engine.optimizers import OptimizerFollower
from lighter_freezers.engine.rules import ActiveRule, Change, num_transitions
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.engine.transition import Transition
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.selection.element_counts import distinct

__all__ = ["Followers", "TransitionListener"]


class TransitionListener(Protocol):
    """A callback that is notified of transitions."""

    def on_transition(self, trainer: TrainerLike, pl_module: nn.Module, transition: Transition) -> None:
        """Called on every rank after each transition, and once when training starts."""


class Followers:
    """Updates all that depends on what the rules and actions of one fit have changed.

    Args:
        active_rules: The rules.
        actions: The actions.
    """

    def __init__(self, active_rules: Sequence[ActiveRule], actions: Actions) -> None:
        self._active_rules = active_rules
        self._actions = actions
        self._listeners: list[TransitionListener] = []
        self._norms = FrozenNorms(nn.Module(), [])
        self._boundary = GradientBoundary(nn.Module())
        self._graphs = CompiledGraphs(nn.Module())
        self.optimizers = OptimizerFollower([])
        self.announcer = Announcer(nn.Module(), [])

    def prepare(self, context: StepContext, listeners: Sequence[TransitionListener]) -> None:
        """Prepare a fit: groups in the optimizers, and the norm layers that may have to stop."""
        self._listeners = list(listeners)
        self.optimizers = OptimizerFollower(self._active_rules)
        self.optimizers.prepare(context.trainer, context.model, self._actions.trainable_later(context.model))
        self._actions.start(context)
        selections = [(active.hold.parameters, active.rule.frozen_norms) for active in self._active_rules]
        selections += [(action.freezable(context.model), "eval") for action in self._actions]
        self._norms = FrozenNorms(context.model, selections)
        if self._active_rules or len(self._actions):
            self._boundary = GradientBoundary(context.model, is_silent=not context.trainer.is_global_zero)
        if context.trainer.is_global_zero:
            self._graphs = CompiledGraphs(context.model)
            self._graphs.warn_of_schedule(num_transitions([active.rule for active in self._active_rules]))

    def begin(self, context: StepContext, *, has_changed: bool) -> None:
        """At the start of training, all loaded: update what depends on what is held now, and log it."""
        if has_changed:
            ddp_wrapper.rebuild(context.trainer.strategy)
        self._norms.follow()
        self.optimizers.follow(context.model)
        self._follow_gradients(context.moment)
        self.announcer = Announcer(context.model, self._active_rules, list(self._actions))
        frozen = [parameter for parameter in context.model.parameters() if not parameter.requires_grad]
        ranks = {name: rank for action in self._actions for name, rank in action.ranks.items()}
        self._announce(
            context, self.announcer.transition(context.moment, frozen, [], True, ActionResult(ranks=ranks))
        )

    def follow(self, context: StepContext, changes: Sequence[Change], outcome: ActionResult) -> None:
        """Update everything, once for all rules and actions."""
        if outcome.is_reshaped:
            for active in self._active_rules:
                active.bind(context.model)
            self._boundary.forget()
            self.announcer = Announcer(context.model, self._active_rules, list(self._actions))
        frozen, thawed = _net_changes(changes, outcome)
        if frozen:
            idle_schedules.refuse_idle_now(context.model, context.moment)
            self.optimizers.forget(changes)
        self._norms.follow()
        self.optimizers.follow(context.model, is_reshaped=outcome.is_reshaped)
        self._follow_gradients(context.moment)
        if context.is_freed:
            ddp_wrapper.put_on(context.trainer.strategy)
        elif frozen or thawed:
            ddp_wrapper.rebuild(context.trainer.strategy)
        self._announce(context, self.announcer.transition(context.moment, frozen, thawed, False, outcome))

    def release(self) -> None:
        """Restore norm layers and optimizers when the fit has ended."""
        self._norms.resume()
        self._boundary.remove()
        self.optimizers.release()

    def _follow_gradients(self, moment: Moment) -> None:
        never = [p for p in self._active_rules if p.rule.cut_gradient == "never" and p.hold.is_active]
        self._boundary.follow(refusing=[each for active in never for each in active.hold.parameters])
        self._graphs.follow(moment.optimizer_step)

    def _announce(self, context: StepContext, transition: Transition) -> None:
        is_worth_a_line = self._active_rules or len(self._actions) or not transition.is_initial
        if context.trainer.is_global_zero and is_worth_a_line:
            self.announcer.log_lines(transition)
        for listener in self._listeners:
            listener.on_transition(context.trainer, context.model, transition)


def _net_changes(changes: Sequence[Change], outcome: ActionResult) -> tuple[list[Parameter], list[Parameter]]:
    """The net changes, each parameter once: a rule may hold what another has just released."""
    frozen = [change.frozen for change in changes if change.frozen]
    thawed = [change.thawed for change in changes if change.thawed]
    if len(frozen) + len(thawed) == 1 and not (outcome.frozen or outcome.thawed):
        return list(chain(*frozen)), list(chain(*thawed))  # only one rule changed something
    still_frozen = [parameter for parameter in chain(*frozen) if not parameter.requires_grad]
    still_thawed = [parameter for parameter in chain(*thawed) if parameter.requires_grad]
    return distinct([*still_frozen, *outcome.frozen]), distinct([*still_thawed, *outcome.thawed])
