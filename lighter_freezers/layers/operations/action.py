"""The act behind LayerOperations: a queue of operations at work on one model, in one fit."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.nn import Parameter

from lighter_freezers._log import log
from lighter_freezers.engine.actions import Action, ActionResult, StepContext
from lighter_freezers.engine.effects.learning_rate_curves import RateCurves
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.triggers import LossOrWait, Moment
from lighter_freezers.layers.operations import execution
from lighter_freezers.layers.operations.execution import Effect, OperationContext
from lighter_freezers.layers.operations.layer_holds import LayerHolds
from lighter_freezers.layers.operations.parse import Operation
from lighter_freezers.layers.operations.queue import OperationQueue, Record
from lighter_freezers.reports.loggers import write_metrics, write_text

if TYPE_CHECKING:
    from lighter_freezers.lora.optimizer_state import NewComponents

__all__ = ["Memory", "OnFailure", "QueuedOperations"]

OnFailure = Literal["stop", "skip"]


@dataclass
class Memory:
    """What a fit leaves to a further fit of the same Trainer, which goes on without a checkpoint."""

    trainer: weakref.ref[Any] | None = None
    state: Mapping[str, Any] | None = None

    def __getstate__(self) -> dict[str, None]:
        """Travel without: another process has another Trainer."""
        return {"trainer": None, "state": None}


class QueuedOperations(Action):
    """The operations of one callback in one fit.

    Args:
        operations: From `read_operations`.
        memory: Of the fit before; it gets what this one leaves.
        monitor: The loss that operations wait for.
        average_over: Optimizer steps in one mean of the training loss.
        on_failure: Whether an operation that cannot be done stops the run.
    """

    title = "LayerOperations"

    def __init__(
        self,
        operations: Sequence[Operation],
        memory: Memory,
        *,
        monitor: str,
        average_over: int,
        on_failure: OnFailure,
    ) -> None:
        super().__init__()
        self.reshapes = execution.changes_ranks(operations)
        self._memory = memory
        self._monitor = monitor
        self._average_over = average_over
        self._on_failure = on_failure
        self._queue = OperationQueue(operations)
        self._holds = LayerHolds(self.title, lambda: self.on_intrusion())
        self._model: nn.Module = nn.Module()
        self._curves: RateCurves | None = None
        self._new_components: NewComponents | None = None
        self._saved: Mapping[str, Any] | None = None
        self._has_begun = False

    @property
    def monitors(self) -> frozenset[str]:
        """The loss, while some operation still depends on it."""
        return frozenset({self._monitor} if self._queue.looks_at_loss else ())

    @property
    def awaits(self) -> LossOrWait | None:
        """What the next operation waits for, if that is the loss."""
        trigger = None if self._queue.next is None else self._queue.next.trigger
        return trigger if trigger is not None and trigger.looks_at_loss else None

    @property
    def average_over(self) -> int:
        """Optimizer steps in one mean of the training loss."""
        return self._average_over

    @property
    def holds(self) -> Sequence[Hold]:
        """What operations hold frozen now."""
        return self._holds.holds

    @property
    def ranks(self) -> Mapping[str, int]:
        """LoRA rank of each component, where operations change ranks."""
        return execution.lora_ranks(self._model) if self.reshapes else {}

    @property
    def wants_gradients(self) -> bool:
        """Whether LoRA components wait for their first gradient."""
        return self._new_components is not None and self._new_components.is_waiting

    def before_optimizer_step(self, optimizer: Any) -> None:
        """Give new LoRA components their moments."""
        assert self._new_components is not None
        self._new_components.start(optimizer)

    def setup(self, trainer: Any, model: nn.Module, stage: str) -> None:
        """Check layers and ranks, and give layers that get LoRA later an empty adapter."""
        self._model = model
        if stage == "fit":
            execution.check_operations(self._queue.operations, model)
        execution.prepare_lora(self._queue.operations, model)
        if stage == "fit" and self.reshapes:  # a merge can be judged once there is an adapter
            execution.check_operations(self._queue.operations, model)

    def trainable_later(self, model: nn.Module) -> dict[str, Parameter]:
        """What operations may let train."""
        return execution.trainable_later(self._queue.operations, model)

    def freezable(self, model: nn.Module) -> list[Parameter]:
        """What operations may freeze."""
        return execution.freezable(self._queue.operations, model)

    def start(self, context: StepContext) -> None:
        """Remember the learning rates as they begin."""
        self._curves = execution.rate_curves(self._queue.operations, context.optimizers, context.schedulers)
        self._new_components = execution.new_components(self._queue.operations)

    def resume(self, context: StepContext) -> None:
        """Go on where the checkpoint was saved, or where the fit before ended; else begin to wait."""
        step = context.moment.optimizer_step
        goes_on = step and self._memory.trainer is not None and self._memory.trainer() is context.trainer
        saved = self._memory.state if self._saved is None and goes_on else self._saved
        self._memory.trainer = weakref.ref(context.trainer)
        self._has_begun = True
        if saved is None:
            self._queue.begin(step)
            return
        self._queue.remember(saved["queue"])
        self._holds.restore(context.model, saved["layers"])
        if self._new_components is not None:
            execution.restore_lora(context.model, self._new_components, saved["new_components"])

    def next_step(self, moment: Moment) -> int | None:
        """When the next operation has waited long enough."""
        return self._queue.deadline()

    def is_due(self, moment: Moment) -> bool:
        """Whether the time of the next operation has come."""
        return self._queue.reason(moment.optimizer_step) is not None

    def observe(self, monitor: str, value: float) -> bool:
        """Take note of the loss."""
        return self._queue.observe(value)

    def apply(self, context: StepContext) -> ActionResult:
        """Do the next operation, and those after it whose time has come too."""
        step = context.moment.optimizer_step
        notes: list[str] = []
        effects: list[Effect] = []
        while (reason := self._queue.reason(step)) is not None:
            operation = self._queue.next
            assert operation is not None
            effect, is_done = self._do(operation, context, notes)
            status: Literal["done", "skipped"] = "done" if is_done else "skipped"
            self._queue.close(Record(str(operation), step, reason, status, effect.text))
            effects.append(effect)
            place = f"{len(self._queue.records)} of {len(self._queue.operations)}"
            said = f" ({operation.desc})" if operation.desc else ""
            notes.append(f"operation {place}, {operation}: {reason}: {effect.text}{said}")
        self._write_record(context)
        return ActionResult(
            is_reshaped=any(effect.is_reshaped for effect in effects),
            notes=tuple(notes),
            ranks={layer: rank for effect in effects for layer, rank in effect.ranks.items()},
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to remember, in plain types."""
        components = self._new_components
        return {
            "queue": self._queue.state(),
            "layers": self._holds.state(self._model),
            "new_components": {} if components is None else components.state(),
        }

    def remember(self, state: Mapping[str, Any]) -> None:
        """Keep what `state` gave until `resume`."""
        self._saved = state

    def end(self, trainer: Any) -> None:
        """Say which operations had no turn."""
        pending = self._queue.pending
        if pending and trainer.is_global_zero:
            log.warning(
                "LayerOperations: %d of %d operations had no turn; next was '%s', %s",
                len(pending),
                len(self._queue.operations),
                pending[0],
                pending[0].trigger,
            )

    def leave(self) -> None:
        """Leave the flags as they are, and remember for a further fit."""
        if self._has_begun:
            self._memory.state = self.state()
        self._holds.leave()

    def _do(self, operation: Operation, context: StepContext, notes: Sequence[str]) -> tuple[Effect, bool]:
        """Do one operation; its effect, or why it failed, and whether it was done.

        Raises:
            RuntimeError: It failed, and that stops the run.
        """
        means = OperationContext(
            context.model,
            self._holds,
            context.optimizers,
            self._curves,
            self._new_components,
            context.free_parameters,
        )
        try:
            return execution.perform(operation, means), True
        except (RuntimeError, ValueError) as error:
            if self._on_failure == "skip":
                return Effect(f"FAILED and skipped: {error}"), False
            step = context.moment.optimizer_step
            for note in notes:  # what was done before it at the same step
                log.info("step %d: %s", step, note)
            raise RuntimeError(
                f"{operation.argument} ({operation}) failed at step {step}: {error} "
                "It does not count as done. Correct it and resume, or set on_failure: skip."
            ) from error

    def _write_record(self, context: StepContext) -> None:
        trainer, step = context.trainer, context.moment.optimizer_step
        if not trainer.is_global_zero:
            return
        num_done = sum(record.status == "done" for record in self._queue.records)
        write_metrics(trainer.loggers, {"operations/done": num_done}, step)
        write_text(trainer.loggers, "operations/log", _table(self._queue.records), step)


def _table(records: Sequence[Record]) -> str:
    """Markdown: one row for each operation that had its turn."""
    rows = [
        [str(record.optimizer_step), f"`{record.operation}`", record.reason, record.status, record.effect]
        for record in records
    ]
    table = [["step", "operation", "because", "status", "effect"], ["---"] * 5, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)
