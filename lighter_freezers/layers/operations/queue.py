"""Which operation is next and whether its time has come: strictly one after another, each once."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lighter_freezers.layers.operations.parse import Operation

__all__ = ["OperationQueue", "Record"]


@dataclass(frozen=True)
class Record:
    """What became of one operation.

    Attributes:
        operation: Its name and value.
        optimizer_step: Optimizer steps done before it.
        reason: Why its time had come.
        status: Whether it was done, or failed and was passed over.
        effect: What it did, or why it failed.
    """

    operation: str
    optimizer_step: int
    reason: str
    status: Literal["done", "skipped"]
    effect: str


class OperationQueue:
    """The operations of one run, in their order, and what became of those that had their turn.

    Args:
        operations: From `read_operations`.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = tuple(operations)
        self.records: list[Record] = []
        self._since = 0  # the optimizer step of the operation before, or of the first step
        self._loss: float | None = None  # the latest

    @property
    def next(self) -> Operation | None:
        """The one whose turn it is; None when all had theirs."""
        return self.operations[len(self.records)] if len(self.records) < len(self.operations) else None

    @property
    def pending(self) -> tuple[Operation, ...]:
        """Those that had no turn yet."""
        return self.operations[len(self.records) :]

    @property
    def looks_at_loss(self) -> bool:
        """Whether an operation that is still to come depends on the loss."""
        return any(operation.trigger.looks_at_loss for operation in self.pending)

    def begin(self, optimizer_step: int) -> None:
        """Count the first wait from this step."""
        self._since = optimizer_step

    def observe(self, loss: float) -> bool:
        """Take note of the latest loss; whether the next operation looks at it."""
        self._loss = loss
        return self.next is not None and self.next.trigger.looks_at_loss

    def reason(self, optimizer_step: int) -> str | None:
        """Why the time of the next operation has come, in words; None if it has not."""
        if self.next is None:
            return None
        return self.next.trigger.reason(self._loss, optimizer_step - self._since)

    def deadline(self) -> int | None:
        """The optimizer step at which the next operation's time comes at the latest; None if none is."""
        return None if self.next is None else self.next.trigger.deadline(self._since)

    def close(self, record: Record) -> None:
        """The next operation had its turn."""
        assert self.next is not None
        if self.next.reevaluate:
            self._loss = None
        self._since = record.optimizer_step
        self.records.append(record)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to remember, in plain types."""
        return {
            "records": [asdict(record) for record in self.records],
            "since": self._since,
            "loss": self._loss,
        }

    def remember(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. What had its turn must still stand in the list, at its place.

        Raises:
            RuntimeError: It does not.
        """
        records = [Record(**record) for record in state["records"]]
        for index, record in enumerate(records):
            there = str(self.operations[index]) if index < len(self.operations) else "nothing"
            if there != record.operation:
                raise RuntimeError(
                    f"The checkpoint was saved after {len(records)} operations. Number {index + 1} of them "
                    f"was '{record.operation}', and now the list has '{there}' there. Put it back: only what "
                    f"comes after number {len(records)} may change. Or start without the checkpoint."
                )
        self.records, self._since, self._loss = records, state["since"], state["loss"]
