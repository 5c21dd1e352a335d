"""Acts: what callbacks bring besides freezing rules, to change a model between two optimizer steps.

An act knows when it is due and what it does then; everything that has to follow is the engine's work.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn import Parameter

from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.effects import ddp_wrapper
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.metric_watch import TRAINING_LOSS
from lighter_freezers.engine.training_loss import TrainingLoss
from lighter_freezers.engine.triggers import LossOrWait, Moment
from lighter_freezers.selection.names import canonical_name

__all__ = ["Action", "Actions", "ActionResult", "StepContext"]


@dataclass(frozen=True)
class ActionResult:
    """What acts have done. Which parameters froze or thawed is not said here: the flags show it.

    Attributes:
        is_reshaped: Whether parameters have other shapes, other names, or are other objects than before.
        notes: One sentence for each thing done, as it stands in the log behind the step.
        ranks: LoRA rank after it, for the components whose rank changed.
        frozen: What stopped training; filled in by the engine.
        thawed: What trains from now on; filled in by the engine.
    """

    is_reshaped: bool = False
    notes: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    frozen: tuple[Parameter, ...] = ()
    thawed: tuple[Parameter, ...] = ()


@dataclass
class StepContext:
    """What an act works on, at one moment of one fit.

    Attributes:
        trainer: The Trainer.
        model: The LightningModule.
        moment: Between which steps, and in which epoch.
        is_freed: Whether the DDP wrapper was taken off.
    """

    trainer: Any
    model: nn.Module
    moment: Moment
    is_freed: bool = False

    @property
    def optimizers(self) -> list[Any]:
        """The Trainer's optimizers."""
        return list(self.trainer.optimizers)

    @property
    def schedulers(self) -> list[Any]:
        """The Trainer's LR schedulers."""
        return [config.scheduler for config in self.trainer.lr_scheduler_configs]

    def free_parameters(self) -> None:
        """Take the DDP wrapper off, so that nothing but module and optimizer knows the parameters.

        To be called by an act right before it gives a parameter another shape. The wrapper is put on again
        after the last act of this moment.
        """
        if not self.is_freed:
            self.is_freed = ddp_wrapper.take_off(self.trainer.strategy)


class Action:
    """Something that changes the model at optimizer-step boundaries. To be subclassed once per callback.

    Attributes:
        title: Names it in logs, errors and checkpoints; the same in a resumed run.
        reshapes: Whether it may give parameters other shapes.
        monitor_argument: What the user calls the argument that names the metrics, for errors.
        on_intrusion: What the holds it makes shall watch with; set by the engine before `setup`.
    """

    title: str
    reshapes: bool = False
    monitor_argument: str = "monitor"

    def __init__(self) -> None:
        self.on_intrusion: Callable[[], None] = lambda: None

    @property
    def monitors(self) -> frozenset[str]:
        """The metrics it waits for now; empty where it waits for none. May only lose members in a fit."""
        return frozenset()

    @property
    def awaits(self) -> LossOrWait | None:
        """The condition on a metric that it waits for next; None where it waits for none."""
        return None

    @property
    def average_over(self) -> int:
        """Optimizer steps in one average of the training loss, where it monitors `training_loss`."""
        return 10

    @property
    def holds(self) -> Sequence[Hold]:
        """What it holds frozen, or may hold."""
        return ()

    @property
    def ranks(self) -> Mapping[str, int]:
        """LoRA rank of each component it knows, for the record of the first moment."""
        return {}

    @property
    def wants_gradients(self) -> bool:
        """Whether `before_optimizer_step` has to be called at the next optimizer step."""
        return False

    def setup(self, trainer: Any, model: nn.Module, stage: str) -> None:
        """Check what only the model can tell, and install what loading a checkpoint needs; in every stage.

        Called before any rule selects its parameters, and once more in `on_fit_start` where the model is
        built in `configure_model`.
        """

    def trainable_later(self, model: nn.Module) -> dict[str, Parameter]:
        """Canonical name -> parameter of what it may let train, so that an optimizer gets to know it."""
        return {}

    def freezable(self, model: nn.Module) -> list[Parameter]:
        """What it may freeze: norm layers of which all is held stand still."""
        return []

    def start(self, context: StepContext) -> None:
        """The fit begins: optimizers and schedulers are as they were built; a checkpoint comes later."""

    def resume(self, context: StepContext) -> None:
        """Training begins, a checkpoint is loaded. Hold again what was held; replay nothing."""

    def next_step(self, moment: Moment) -> int | None:
        """The next optimizer step at which it may act by itself; None if there is none."""
        return None

    def is_due(self, moment: Moment) -> bool:
        """Whether there is something to do now."""
        raise NotImplementedError

    def apply(self, context: StepContext) -> ActionResult:
        """Do all that is due. To raise is to stop the run."""
        raise NotImplementedError

    def observe(self, monitor: str, value: float) -> bool:
        """Take note of a fresh value of one of `monitors`, reduced over ranks; whether it may be due now."""
        raise NotImplementedError

    def before_optimizer_step(self, optimizer: Any) -> None:
        """Look at the accumulated, unscaled gradients; called while `wants_gradients`."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to remember, in plain types."""
        return {}

    def remember(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; called after the weights are loaded and before `resume`."""

    def end(self, trainer: Any) -> None:
        """Training ended by itself."""

    def leave(self) -> None:
        """The fit is over, or broke off."""


class Actions:
    """All acts of one fit.

    Args:
        actions: In the order of their callbacks, which is the order they act in at one moment.
    """

    def __init__(self, actions: Sequence[Action]) -> None:
        counts: Counter[str] = Counter()
        self._actions: dict[str, Action] = {}
        for action in actions:
            counts[action.title] += 1
            self._actions[f"{action.title}#{counts[action.title]}"] = action
        self._losses: dict[str, TrainingLoss] = {}  # by the key of the act that waits for it
        self._saved_losses: Mapping[str, Any] = {}

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions.values())

    def __len__(self) -> int:
        return len(self._actions)

    def start(self, context: StepContext) -> None:
        """Begin a fit."""
        for action in self:
            action.start(context)

    def resume(self, context: StepContext, num_batches_per_step: int) -> None:
        """Begin to train; the losses of acts that wait for them are averaged from now on."""
        for key, action in self._actions.items():
            action.resume(context)
            if TRAINING_LOSS in action.monitors:
                self._losses[key] = TrainingLoss(action.average_over, num_batches_per_step)
                if key in self._saved_losses:
                    self._losses[key].remember(self._saved_losses[key])

    def trainable_later(self, model: nn.Module) -> dict[str, Parameter]:
        """What any of them may let train."""
        return {
            name: parameter for action in self for name, parameter in action.trainable_later(model).items()
        }

    @property
    def listens_to_loss(self) -> bool:
        """Whether one of them waits for the training loss."""
        return bool(self._losses)

    def note_loss(self, trainer: Any, outputs: Any) -> bool:
        """Take note of the loss of one batch.

        Returns:
            Whether an average is complete: it can be read one optimizer step later.
        """
        is_complete = False
        for loss in self._losses.values():
            if loss.note(outputs):
                loss.close(trainer, trainer_clock.moment(trainer).optimizer_step)
                is_complete = True
        return is_complete

    def perform(self, context: StepContext) -> ActionResult | None:
        """Read the averages that are there, and do all that is due; None if that is nothing."""
        self._read_losses(context.moment)
        due = [action for action in self if action.is_due(context.moment)]
        if not due:
            return None
        before = _flags(context.model)
        outcomes = [action.apply(context) for action in due]
        after = _flags(context.model)
        changed = [
            name for name, (_, flag) in after.items() if name in before and before[name][1] is not flag
        ]
        self._losses = {
            key: loss for key, loss in self._losses.items() if TRAINING_LOSS in self._actions[key].monitors
        }
        return dataclasses.replace(
            _joined(outcomes),
            frozen=tuple(after[name][0] for name in changed if not after[name][1]),
            thawed=tuple(after[name][0] for name in changed if after[name][1]),
        )

    def next_steps(self, moment: Moment) -> list[int]:
        """The next optimizer steps at which one of them may act or read an average."""
        steps = [action.next_step(moment) for action in self]
        steps += [loss.ready_step for loss in self._losses.values()]
        return [step for step in steps if step is not None and step > moment.optimizer_step]

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to remember, in plain types."""
        losses = {key: loss.state() for key, loss in self._losses.items()}
        return {"acts": {key: action.state() for key, action in self._actions.items()}, "losses": losses}

    def remember(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._saved_losses = state.get("losses", {})
        for key, action in self._actions.items():
            if key in state.get("acts", {}):  # a checkpoint of version 0.1 has none
                action.remember(state["acts"][key])

    def leave(self) -> None:
        """End of the fit."""
        for action in self:
            action.leave()
        self._losses = {}

    def _read_losses(self, moment: Moment) -> None:
        for key, loss in self._losses.items():
            value = loss.take(moment)
            if value is not None:
                self._actions[key].observe(TRAINING_LOSS, value)


def _flags(model: nn.Module) -> dict[str, tuple[Parameter, bool]]:
    named = model.named_parameters()
    return {canonical_name(name): (parameter, parameter.requires_grad) for name, parameter in named}


def _joined(outcomes: Sequence[ActionResult]) -> ActionResult:
    return ActionResult(
        is_reshaped=any(outcome.is_reshaped for outcome in outcomes),
        notes=tuple(note for outcome in outcomes for note in outcome.notes),
        ranks={name: rank for outcome in outcomes for name, rank in outcome.ranks.items()},
    )
