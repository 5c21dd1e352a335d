"""The action behind LayerOperations: prepares a model for a queue of operations, and does them in one fit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers._log import log
from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.actions import Action, ActionResult, StepContext
from lighter_freezers.engine.effects.learning_rate_curves import RateCurves
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.run_shares import RunShares
from lighter_freezers.engine.terms import Terms
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.engine.triggers import LossOrWait, Moment
from lighter_freezers.layers.changes import lora_factors
from lighter_freezers.layers.operations.kinds import Effect, OperationContext
from lighter_freezers.layers.operations.layer_holds import LayerHolds, parameters_of_layers
from lighter_freezers.layers.operations.parse import Operation
from lighter_freezers.layers.operations.queue import OperationQueue, Record
from lighter_freezers.reports.loggers import write_text
from lighter_freezers.reports.step_curves import StepCurves

if TYPE_CHECKING:
    from lighter_freezers.lora.optimizer_state import NewComponents

__all__ = ["OnFailure", "QueuedOperations"]

OnFailure = Literal["stop", "skip"]


class QueuedOperations(Action):
    """The operations of one callback in one fit.

    Args:
        operations: From `read_operations`.
        monitor: The loss that operations wait for.
        average_over: Optimizer steps in one mean of the training loss.
        on_failure: Whether an operation that fails stops the run.
        terms: What else is asked for while layers are held.
    """

    title = "LayerOperations"
    kind = "operations"

    def __init__(
        self,
        operations: Sequence[Operation],
        *,
        monitor: str,
        average_over: int,
        on_failure: OnFailure,
        terms: Terms,
    ) -> None:
        super().__init__()
        self.terms = terms
        self.reshapes = any(operation.kind.about == "lora" for operation in operations)
        self._monitor = monitor
        self._average_over = average_over
        self._on_failure = on_failure
        self._queue = OperationQueue(operations)
        self.entries = self._queue.titles
        self._holds = LayerHolds(self.title, lambda: self.on_intrusion(), terms)
        self._model: nn.Module = nn.Module()
        self._curves: RateCurves | None = None
        self._done = StepCurves()
        self._new_components: NewComponents | None = None
        self._saved: SavedState | None = None

    @property
    def monitors(self) -> frozenset[str]:
        """The loss, while some operation still depends on it."""
        return frozenset({self._monitor} if self._queue.looks_at_loss else ())

    @property
    def awaits(self) -> LossOrWait | None:
        """The condition of the next operation, if it waits for the loss."""
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
        if not self.reshapes:
            return {}
        from lighter_freezers.lora.sites import find_lora_sites

        return {site.layer: site.factors.rank for site in find_lora_sites(self._model).values()}

    @property
    def wants_gradients(self) -> bool:
        """Whether LoRA components wait for their first gradient."""
        return self._new_components is not None and self._new_components.is_waiting

    def before_optimizer_step(self, context: StepContext, optimizer: Optimizer) -> None:
        """Initialise the optimizer moments of new LoRA components from their first gradient."""
        assert self._new_components is not None
        self._new_components.start(optimizer)

    def setup(self, trainer: TrainerLike, model: nn.Module, stage: str) -> None:
        """Check layers and ranks, and give layers that get LoRA later an empty adapter."""
        self._model = model
        if stage == "fit":
            self._check(model)
        if self.reshapes:
            self._prepare_lora(model)
        if stage == "fit" and self.reshapes:  # whether a merge is possible is known once there is an adapter
            self._check(model)
        for layers in (*self._layers("freezing"), *self._layers("thawing")) if stage == "fit" else ():
            self._holds.resolve(model, layers)

    def trainable_later(self, model: nn.Module) -> dict[str, Parameter]:
        """What operations may thaw, by name: it has to be in an optimizer from the start."""
        named: dict[str, Parameter] = {}
        for layers in self._layers("thawing"):
            named |= parameters_of_layers(model, layers)
        named |= lora_factors(model) if self.reshapes else {}  # a saved group has this order
        return {name: p for name, p in named.items() if p.is_floating_point() or p.is_complex()}

    def freezable(self, model: nn.Module) -> list[Parameter]:
        """What operations may freeze."""
        layers = dict.fromkeys(self._layers("freezing"))
        return [p for each in layers for p in parameters_of_layers(model, each).values()]

    def take_optimizers(self, context: StepContext) -> None:
        """Record the initial learning rates, if an operation changes them.

        Raises:
            RuntimeError: An operation could not be done with these optimizers and schedulers.
        """
        about_rates = [operation for operation in self._queue.operations if operation.kind.about == "rates"]
        if not about_rates:
            return
        self._curves = RateCurves(context.optimizers, context.schedulers)
        for operation in about_rates:
            if operation.kind.needs_schedule and not self._curves.has_schedule:
                raise RuntimeError(
                    f"{operation.argument} ({operation.name}): there is no LR scheduler to restart. "
                    "Return one from configure_optimizers, or remove the operation."
                )

    def start(self, context: StepContext) -> None:
        """Watch for LoRA components that have had no gradient yet."""
        if self.reshapes:
            from lighter_freezers.lora.optimizer_state import NewComponents

            self._new_components = NewComponents()

    def resume(self, context: StepContext) -> None:
        """Continue from the state there is; else start the first wait."""
        saved = self._saved
        self._holds.fix(context.model)
        if saved is None:
            self._queue.begin(context.moment.optimizer_step)
            return
        self._queue.remember(saved)
        self._holds.restore(context.model, saved["layers"])
        if self._new_components is not None:
            from lighter_freezers.lora.set_rank import hold_bases
            from lighter_freezers.lora.sites import find_lora_sites

            hold_bases(context.model)
            self._new_components.remember(saved["new_components"], find_lora_sites(context.model))

    def resolve(self, shares: RunShares) -> None:
        """Put steps in place of shares of the run."""
        self._queue.resolve(shares)

    def next_step(self, moment: Moment) -> int | None:
        """The optimizer step at which the wait of the next operation ends."""
        return self._queue.deadline()

    def beyond(self, last: Moment) -> list[str]:
        """The next operation, where its wait is too long and no loss ends it."""
        step = None if self.awaits else self._queue.deadline()
        return [] if step is None or step <= last.optimizer_step else [f"{self._queue.next} at step {step}"]

    def is_due(self, moment: Moment) -> bool:
        """Whether the next operation is due."""
        return self._queue.reason(moment.optimizer_step) is not None

    def observe(self, monitor: str, value: float) -> bool:
        """Record the loss; returns whether the next operation depends on it."""
        return self._queue.observe(value)

    def apply(self, context: StepContext) -> ActionResult:
        """Do the next operation, and those after it that are due too."""
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
            num_operations = len(self._queue.operations)
            place = f"{num_operations - len(self._queue.pending)} of {num_operations}"
            said = f" ({operation.desc})" if operation.desc else ""
            notes.append(f"operation {place}, {operation}: {reason}: {effect.text}{said}")
        self._write_record(context)
        return ActionResult(
            is_reshaped=any(effect.is_reshaped for effect in effects),
            notes=tuple(notes),
            ranks={layer: rank for effect in effects for layer, rank in effect.ranks.items()},
        )

    def state(self) -> dict[str, object]:
        """The state for a checkpoint, in plain types."""
        components = self._new_components
        return {
            **self._queue.state(),
            "layers": self._holds.state(self._model),
            "new_components": {} if components is None else components.state(),
        }

    def remember(self, state: SavedState) -> None:
        """Keep what `state` gave until `resume`."""
        self._saved = state

    def end(self, trainer: TrainerLike) -> None:
        """Log which operations were not reached; a trial run reaches few of them."""
        pending = self._queue.pending
        if pending and trainer.is_global_zero and not trainer_clock.is_trial(trainer):
            log.warning(
                "LayerOperations: %d of %d operations were not reached; next was '%s', %s",
                len(pending),
                len(self._queue.operations),
                pending[0],
                pending[0].trigger,
            )

    def leave(self) -> None:
        """Leave the flags as they are."""
        self._holds.leave()

    def _layers(self, about: Literal["freezing", "thawing"]) -> list[str]:
        return [str(each.value) for each in self._queue.operations if each.kind.about == about]

    def _check(self, model: nn.Module) -> None:
        """Check all operations against the model, before any is done.

        Raises:
            ValueError: A layer is unknown, or a rank impossible; the message says where, and what there is.
            RuntimeError: The rank of a layer cannot be changed, or not in this way.
        """
        for operation in self._queue.operations:
            try:
                if operation.kind.check is not None:
                    operation.kind.check(model, operation.value)
            except (ValueError, RuntimeError) as error:
                raise type(error)(f"{operation.argument} ({operation}): {error}") from None

    def _prepare_lora(self, model: nn.Module) -> None:
        """Give layers that get LoRA later empty factors now, and restore ranks from checkpoints."""
        from lighter_freezers.lora.attach import prepare_lora_layers
        from lighter_freezers.lora.restore import install_rank_restore

        operations = self._queue.operations
        targets = [each.kind.target(each.value) for each in operations if each.kind.target is not None]
        prepare_lora_layers(model, list(dict.fromkeys(layer for layer, rank in targets if rank)))
        install_rank_restore(model)

    def _do(self, operation: Operation, context: StepContext, notes: Sequence[str]) -> tuple[Effect, bool]:
        """Do one operation; returns its effect, or why it failed, and whether it was done.

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
            return operation.perform(means), True
        except (RuntimeError, ValueError) as error:
            if self._on_failure == "skip":
                return Effect(f"FAILED and skipped: {error}"), False
            step = context.moment.optimizer_step
            for note in notes:  # the effects of earlier operations at the same step
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
        self._done.change(trainer, {"operations/done": num_done}, step)
        write_text(trainer.loggers, "operations/log", _table(self._queue.records), step)


def _table(records: Sequence[Record]) -> str:
    """A Markdown table with one row for each operation that was reached."""
    rows = [
        [str(record.optimizer_step), f"`{record.operation}`", record.reason, record.status, record.effect]
        for record in records
    ]
    table = [["step", "operation", "because", "status", "effect"], ["---"] * 5, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)
