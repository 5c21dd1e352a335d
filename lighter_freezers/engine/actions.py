"""Actions: changes other than freezing rules that callbacks make to a model between two optimizer steps.

An action decides when it is due and applies its change; the engine then updates everything that depends on
it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine import ledger
from lighter_freezers.engine.checkpoint_identity import (
    changed_entries,
    find_states,
    has_condition,
    list_key,
    numbered,
)
from lighter_freezers.engine.early_stopping import OutOfPatience
from lighter_freezers.engine.effects.learning_rates import RateFactor
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.metric_watch import TRAINING_LOSS
from lighter_freezers.engine.run_shares import RunShares
from lighter_freezers.engine.step_context import ActionResult, StepContext
from lighter_freezers.engine.terms import Terms
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.engine.training_loss import TrainingLoss
from lighter_freezers.engine.triggers import LossOrWait, MetricTrigger, Moment
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["Action", "Actions", "ActionResult", "StepContext"]


class Action:
    """A change of the model at optimizer-step boundaries. Each kind of callback has its own subclass.

    A subclass says when it is due (`next_step`, `is_due`) and applies its change (`apply`). What it holds
    through `new_hold` the engine follows: optimizer state, norm layers, the backward pass, DDP, log, plan.

    Attributes:
        title: Names it in logs and errors.
        kind: Names it in checkpoints; it may restore the state of another action of the same kind. Only one
            action of a run may have the default.
        entries: Key -> title of each entry of its list.
        terms: What else it asks for while it holds something.
        reshapes: Whether it may give parameters other shapes.
        monitor_argument: What the user calls the argument that names the metrics, for errors.
        depends_on_data: Whether what it does follows from data or gradients, so that a plan says "may".
        wants_loss: Whether `StepContext.loss` has to be kept for it.
        ends_first: Whether what it does at the end of the run comes before `on_train_end` of other callbacks.
        on_intrusion: The function its holds pass to `Hold.watch`; set by the engine before `setup`.
    """

    title: str
    kind: str = "action"
    entries: Mapping[str, str] = MappingProxyType({})
    terms: Terms = Terms()
    reshapes: bool = False
    monitor_argument: str = "monitor"
    depends_on_data: bool = False
    wants_loss: bool = False
    ends_first: bool = False

    def __init__(self) -> None:
        self.on_intrusion: Callable[[], None] = lambda: None
        self._holds_of_setup: list[Hold] = []

    def new_hold(self, parameters: Iterable[Parameter]) -> Hold:
        """A hold under the action's title and terms, which the engine follows; call it in `setup`."""
        hold = Hold(parameters, self.title, self.terms)
        hold.watch(lambda: self.on_intrusion())
        self._holds_of_setup.append(hold)
        return hold

    @property
    def monitors(self) -> frozenset[str]:
        """The metrics it waits for now, possibly none. During a fit the set may only shrink."""
        return frozenset()

    @property
    def awaits(self) -> LossOrWait | MetricTrigger | OutOfPatience | None:
        """The condition on a metric that it waits for next; None where it waits for none."""
        return None

    @property
    def average_over(self) -> int:
        """Optimizer steps in one average of the training loss, where it monitors `training_loss`."""
        return 10

    @property
    def holds(self) -> Sequence[Hold]:
        """What it holds frozen, or may hold."""
        return self._holds_of_setup

    def is_held_by_others(self, hold: Hold) -> bool:
        """Whether nothing that one of its holds covers would train if this action held nothing."""
        return not any(
            not ledger.is_user_frozen(each) and {self.title}.issuperset(ledger.holders(each))
            for each in hold.parameters
        )

    @property
    def rate_factors(self) -> Sequence[RateFactor]:
        """What scales learning rates during this fit; the same whenever it is asked for."""
        return ()

    @property
    def ranks(self) -> Mapping[str, int]:
        """LoRA rank of each component it manages, for the record of the first moment."""
        return {}

    @property
    def wants_gradients(self) -> bool:
        """Whether `before_optimizer_step` has to be called at the next optimizer step."""
        return False

    def setup(self, trainer: TrainerLike, model: nn.Module, stage: str) -> None:
        """Check the arguments against the model, and install what loading a checkpoint needs; in every stage.

        Called before any rule selects its parameters, and once more in `on_fit_start` where the model is
        built in `configure_model`.
        """

    def trainable_later(self, model: nn.Module) -> dict[str, Parameter]:
        """Canonical name -> parameter of what it may thaw later, so that an optimizer can include it."""
        held = {id(each) for each in self.freezable(model) if not ledger.is_user_frozen(each)}
        return {name: each for name, each in canonical_parameters(model).items() if id(each) in held}

    def freezable(self, model: nn.Module) -> list[Parameter]:
        """What it may freeze: a norm layer stops updating once all its parameters are held."""
        return [each for hold in self.holds for each in hold.parameters]

    def start(self, context: StepContext) -> None:
        """Called when a fit starts: optimizers and schedulers are as built; a checkpoint is loaded later."""

    def take_optimizers(self, context: StepContext) -> None:
        """Called before `start`, and when a stage brings another optimizer or LR scheduler: as built."""

    def resolve(self, shares: RunShares) -> None:
        """Called before `resume`: put steps and epochs in place of shares of the run (`30%`)."""

    def resume(self, context: StepContext) -> None:
        """Called when training starts, with the checkpoint loaded: hold what was held; replay no change."""

    def next_step(self, moment: Moment) -> int | None:
        """The next optimizer step at which it may be due without a new metric value, or None."""
        return None

    def counts_steps(self, moment: Moment) -> bool:
        """Whether it waits for a number of optimizer steps, or for the training loss averaged over some."""
        return self.next_step(moment) is not None or TRAINING_LOSS in self.monitors

    def beyond(self, last: Moment) -> list[str]:
        """What it would do only after the last moment of the run, whatever a metric says."""
        return []

    def is_due(self, moment: Moment) -> bool:
        """Whether a change is due at this moment."""
        raise NotImplementedError

    def apply(self, context: StepContext) -> ActionResult:
        """Apply all that is due. An exception stops the run."""
        raise NotImplementedError

    def observe(self, monitor: str, value: float) -> bool:
        """Record a value of one of `monitors`, reduced over ranks; whether the action may be due now."""
        raise NotImplementedError

    def before_optimizer_step(self, context: StepContext, optimizer: Optimizer) -> None:
        """Read the accumulated, unscaled gradients; called while `wants_gradients` is true."""

    def state(self) -> dict[str, object]:
        """The state for a checkpoint, in plain types; `done`: key -> title of finished entries."""
        return {"done": {}}

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned; called after the weights are loaded and before `resume`."""

    def end(self, trainer: TrainerLike) -> None:
        """Called when training ended without an error."""

    def leave(self) -> None:
        """Called when the fit has ended or failed: stop holding, and leave the flags as they are."""
        for hold in self._holds_of_setup:
            hold.abandon()
        self._holds_of_setup = []


class Actions:
    """All actions of one fit.

    Args:
        actions: In the order of their callbacks; at one moment they are applied in this order.
    """

    def __init__(self, actions: Sequence[Action]) -> None:
        unnamed = [action for action in actions if action.kind == Action.kind]
        if len(unnamed) > 1:
            classes = ", ".join(dict.fromkeys(type(action).__name__ for action in unnamed))
            raise ValueError(
                f"{len(unnamed)} actions of this run ({classes}) have the default kind '{Action.kind}', so a "
                "checkpoint could not tell whose state is whose. Give each class a `kind` of its own."
            )
        keys = numbered(list_key(action.kind, action.entries) for action in actions)
        self._actions: dict[str, Action] = dict(zip(keys, actions, strict=True))
        self._losses: dict[str, TrainingLoss] = {}  # by the key of the action that waits for it
        self._saved_losses: dict[str, SavedState] = {}

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions.values())

    def __len__(self) -> int:
        return len(self._actions)

    def start(self, context: StepContext) -> None:
        """Start every action, with optimizers and schedulers as they were built."""
        for action in self:
            action.start(context)

    def resume(self, context: StepContext) -> None:
        """Resume every action, and start averaging the training loss for those that wait for it."""
        for key, action in self._actions.items():
            action.resume(context)
            if TRAINING_LOSS in action.monitors:
                self._losses[key] = TrainingLoss(action.average_over, context.moment.optimizer_step)
                if key in self._saved_losses:
                    self._losses[key].remember(self._saved_losses[key])

    def trainable_later(self, model: nn.Module) -> dict[str, Parameter]:
        """What any of them may thaw later."""
        return {
            name: parameter for action in self for name, parameter in action.trainable_later(model).items()
        }

    @property
    def listens_to_loss(self) -> bool:
        """Whether any action waits for the training loss."""
        return bool(self._losses)

    def note_loss(self, trainer: TrainerLike, loss: Tensor | None, step: int, window: int) -> bool:
        """Record the loss of one batch.

        Args:
            trainer: The Trainer.
            loss: The whole loss.
            step: Optimizer steps done.
            window: Batches in the accumulation window.

        Returns:
            Whether an average is complete: it can be read one optimizer step later.
        """
        is_complete = False
        for average in self._losses.values():
            if average.note(loss, step, window):
                average.close(trainer, step)
                is_complete = True
        return is_complete

    def perform(self, context: StepContext) -> ActionResult | None:
        """Read the averages that are ready and apply all that is due; None if nothing is due."""
        self._read_losses(context.moment)
        due = [action for action in self if action.is_due(context.moment)]
        if not due:
            return None
        outcomes = [_marked(action.apply(context), action) for action in due]
        self._losses = {
            key: loss for key, loss in self._losses.items() if TRAINING_LOSS in self._actions[key].monitors
        }
        return _joined(outcomes)

    def next_steps(self, moment: Moment) -> list[int]:
        """The next optimizer steps at which an action may be due or an average can be read."""
        steps = [action.next_step(moment) for action in self]
        steps += [loss.ready_step for loss in self._losses.values()]
        return [step for step in steps if step is not None and step > moment.optimizer_step]

    def state(self) -> dict[str, object]:
        """The state for a checkpoint, in plain types."""
        losses = {key: loss.state() for key, loss in self._losses.items()}
        return {
            key: {
                "kind": action.kind,
                "title": action.title,
                "training_loss": losses.get(key),
                "done": {},
                **action.state(),
            }
            for key, action in self._actions.items()
        }

    def remember(self, states: Mapping[str, SavedState]) -> tuple[list[str], list[str]]:
        """Restore what `state` returned.

        Returns:
            Titles of what has no state and loses something by it, and of what was done and no longer exists.
        """
        owned = find_states(
            {key: (action.kind, action.entries) for key, action in self._actions.items()}, states
        )
        without_state = [
            action.title
            for key, action in self._actions.items()
            if key not in owned and any(map(has_condition, action.entries))
        ]
        without_owner = [
            state["title"]
            for key, state in states.items()
            if key not in owned.values() and any(map(has_condition, state["done"]))
        ]
        for key, saved_key in owned.items():
            action, state = self._actions[key], states[saved_key]
            action.remember(state)
            if state["training_loss"] is not None:
                self._saved_losses[key] = state["training_loss"]
            skipped, gone = changed_entries(action.entries, state["done"])
            without_state += [f"{action.title}: '{title}'" for title in skipped]
            without_owner += [f"{action.title}: '{title}'" for title in gone]
        return without_state, without_owner

    def leave(self) -> None:
        """Tell every action that the fit has ended."""
        for action in self:
            action.leave()
        self._losses = {}

    def _read_losses(self, moment: Moment) -> None:
        for key, loss in self._losses.items():
            for value in loss.take(moment):
                self._actions[key].observe(TRAINING_LOSS, value)


def _marked(outcome: ActionResult, action: Action) -> ActionResult:
    """The result, marked where it depends on data; not where nothing was done."""
    if outcome == ActionResult() or not action.depends_on_data:
        return outcome
    return replace(outcome, depends_on_data=True, examples=outcome.notes)


def _joined(outcomes: Sequence[ActionResult]) -> ActionResult:
    return ActionResult(
        is_reshaped=any(outcome.is_reshaped for outcome in outcomes),
        notes=tuple(note for outcome in outcomes for note in outcome.notes),
        ranks={name: rank for outcome in outcomes for name, rank in outcome.ranks.items()},
        depends_on_data=any(outcome.depends_on_data for outcome in outcomes),
        examples=tuple(note for outcome in outcomes for note in outcome.examples),
    )
