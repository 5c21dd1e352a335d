"""Updates what depends on flags and shapes: optimizers, norm layers, DDP wrapper, log, listeners."""

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from lighter_freezers.engine import idle_schedules
from lighter_freezers.engine.actions import ActionResult, Actions, StepContext
from lighter_freezers.engine.effects import ddp_wrapper
from lighter_freezers.engine.effects.backward_cut import GradientBoundary
from lighter_freezers.engine.effects.compiled_graphs import CompiledGraphs
from lighter_freezers.engine.effects.frozen_dtype import FrozenDtype
from lighter_freezers.engine.effects.frozen_modes import FrozenModes
from lighter_freezers.engine.effects.learning_rates import KeptRate
from lighter_freezers.engine.effects.norm_layers import FrozenNorms
from lighter_freezers.engine.flips import Flips
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.log_lines import Announcer
from lighter_freezers.engine.optimizers import OptimizerFollower
from lighter_freezers.engine.rules import ActiveRule, num_transitions
from lighter_freezers.engine.trainer_like import TrainerLike, optimizers_of
from lighter_freezers.engine.trainer_strategies import flat_model, refuse_fixed_shapes
from lighter_freezers.engine.transition import Transition
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.selection.element_counts import note_whole_sizes
from lighter_freezers.selection.tied_weights import TiedWeights

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
        self._held: list[Hold] = []
        self._has_warned_of_rate = False
        self._norms = FrozenNorms(nn.Module(), [])
        self._modes = FrozenModes(nn.Module())
        self._boundary = GradientBoundary(nn.Module())
        self._dtype = FrozenDtype(nn.Module(), self._boundary)
        self._graphs = CompiledGraphs(nn.Module())
        self.optimizers = OptimizerFollower([], [])
        self.announcer = Announcer(nn.Module(), [])

    def prepare(
        self, context: StepContext, listeners: Sequence[TransitionListener], kept: Sequence[KeptRate] = ()
    ) -> None:
        """Prepare a fit: groups in the optimizers, and the norm layers that may have to stop."""
        self._listeners = list(listeners)
        if (flat := flat_model(context.trainer.strategy)) is not None:
            note_whole_sizes(flat)
        if not optimizers_of(context.trainer):
            idle_schedules.refuse_without_optimizer(self._active_rules, list(self._actions), context)
        if any(action.reshapes for action in self._actions):
            refuse_fixed_shapes(optimizers_of(context.trainer))
        self.prepare_optimizers(context, kept)
        self._actions.start(context)
        freezable = [each for active in self._active_rules for each in active.hold.parameters]
        freezable += [each for action in self._actions for each in action.freezable(context.model)]
        self._norms, self._modes = FrozenNorms(context.model, freezable), FrozenModes(context.model)
        is_silent = not context.trainer.is_global_zero
        if self._active_rules or len(self._actions):
            self._boundary = GradientBoundary(context.model, is_silent=is_silent)
        self._dtype = FrozenDtype(context.model, self._boundary, is_silent=is_silent)
        if not is_silent:
            idle_schedules.warn_of_user_frozen(self._active_rules, context.model)
            self._graphs = CompiledGraphs(context.model)
            self._graphs.warn_of_schedule(num_transitions([active.rule for active in self._active_rules]))

    def prepare_optimizers(self, context: StepContext, kept: Sequence[KeptRate]) -> None:
        """Make the groups in the optimizers that the run has now."""
        states = [each.rule.terms.optimizer_state for each in self._active_rules]
        states += [action.terms.optimizer_state for action in self._actions]
        factors = [factor for action in self._actions for factor in action.rate_factors]
        self.optimizers = OptimizerFollower(self._active_rules, states, factors, kept)
        self.optimizers.prepare(context.trainer, context.model, self._actions.trainable_later(context.model))
        for action in self._actions:
            action.take_optimizers(context)

    def begin(self, context: StepContext, *, has_changed: bool) -> None:
        """At the start of training, all loaded: update what depends on what is held now, and log it."""
        if has_changed:
            ddp_wrapper.rebuild(context.trainer.strategy)
        self._held = self._active_holds()
        self._follow_modules()
        self.optimizers.follow(context.model, self._held)
        self.optimizers.keep_up()
        self._follow_gradients(context.moment)
        self._renew_announcer(context.model)
        frozen = [parameter for parameter in context.model.parameters() if not parameter.requires_grad]
        ranks = {name: rank for action in self._actions for name, rank in action.ranks.items()}
        self._announce(
            context, self.announcer.transition(context.moment, frozen, [], True, ActionResult(ranks=ranks))
        )

    def follow(self, context: StepContext, flips: Flips, outcome: ActionResult | None) -> bool:
        """Update everything, once for all rules and actions.

        Args:
            context: The moment.
            flips: What froze and thawed.
            outcome: What actions changed; None where none was due.

        Returns:
            Whether there was anything to update: a hold that began or ended, or an action.
        """
        if outcome is not None and outcome.is_reshaped:
            self._look_again(context)
        before, self._held = self._held, self._active_holds()
        moved = _in_one_of(before, self._held)
        if not moved and outcome is None:
            self.optimizers.keep_up()
            return False
        outcome = outcome or ActionResult()
        frozen, thawed = flips.net
        if frozen and not self.announcer.sees_training:
            idle_schedules.refuse_idle_now(context.model, context.moment)
        if frozen or thawed:
            self.optimizers.drop_histories()
        self.optimizers.forget([hold for hold in moved if hold.is_active])
        is_known = all(hold.parameters for hold in moved)  # an abandoned hold does not say what it held
        self._follow_modules(moved if is_known and not outcome.is_reshaped else None)
        self.optimizers.follow(context.model, self._held, is_reshaped=outcome.is_reshaped)
        self.optimizers.keep_up()  # before listeners read the rates
        self._follow_gradients(context.moment)
        if context.is_freed:
            ddp_wrapper.put_on(context.trainer.strategy)
        elif frozen or thawed:
            ddp_wrapper.rebuild(context.trainer.strategy)
        if self.announcer.has_lazy:  # by now the layers may have their shapes
            self._renew_announcer(context.model)
        transition = self.announcer.transition(context.moment, frozen, thawed, False, outcome)
        if frozen or thawed or outcome != ActionResult():
            self._announce(context, transition)
        is_to_warn = thawed and context.trainer.is_global_zero and not self._has_warned_of_rate
        if is_to_warn and (idle := self.optimizers.without_rate(thawed)):
            self._has_warned_of_rate = True
            self.announcer.warn_of_no_rate(idle, has_scheduler=bool(context.schedulers))
        return True

    def _look_again(self, context: StepContext) -> None:
        """Parameters have other shapes or names: find them again."""
        tied = TiedWeights(context.model)
        for active in self._active_rules:
            active.bind(tied)
        self._boundary.forget()
        self._renew_announcer(context.model)

    def _renew_announcer(self, model: nn.Module) -> None:
        self.announcer = Announcer(model, self._active_rules, list(self._actions))

    def _follow_modules(self, moved: Sequence[Hold] | None = None) -> None:
        is_asked_for = any(hold.terms.frozen_mode == "eval" for hold in self._held)
        if is_asked_for or self._modes.is_active:  # both set modes, and remember those from before
            self._modes.resume()
            self._norms.resume()
            moved = None
        self._norms.follow(moved)
        self._modes.follow(is_asked_for=is_asked_for)
        self._dtype.follow(is_asked_for=any(hold.terms.frozen_dtype for hold in self._held))

    def _active_holds(self) -> list[Hold]:
        holds = [active.hold for active in self._active_rules]
        holds += [hold for action in self._actions for hold in action.holds]
        return [hold for hold in holds if hold.is_active]

    def release(self) -> None:
        """Restore norm layers and optimizers when the fit has ended."""
        self._modes.resume()
        self._norms.resume()
        self._dtype.follow(is_asked_for=False)
        self._boundary.remove()
        self.optimizers.release()

    def _follow_gradients(self, moment: Moment) -> None:
        never = [hold for hold in self._held if hold.terms.cut_gradient == "never"]
        self._boundary.follow(refusing=[each for hold in never for each in hold.parameters])
        self._graphs.follow(moment.optimizer_step)

    def _announce(self, context: StepContext, transition: Transition) -> None:
        is_worth_a_line = self._active_rules or len(self._actions) or not transition.is_initial
        if context.trainer.is_global_zero and is_worth_a_line:
            self.announcer.log_lines(transition)
        for listener in self._listeners:
            listener.on_transition(context.trainer, context.model, transition)


def _in_one_of(before: Sequence[Hold], now: Sequence[Hold]) -> list[Hold]:
    """The holds that began or ended, in their order."""
    both = {*map(id, before)} & {*map(id, now)}
    return [hold for hold in (*before, *now) if id(hold) not in both]
