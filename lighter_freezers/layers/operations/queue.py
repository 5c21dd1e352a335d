"""Which operation is next and whether it is due: strictly one after another, each once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from lighter_freezers.engine.checkpoint_identity import entry_key, match_done, numbered
from lighter_freezers.engine.run_shares import RunShares
from lighter_freezers.engine.trainer_like import SavedState
from lighter_freezers.layers.operations.parse import Operation

__all__ = ["OperationQueue", "Record"]


@dataclass(frozen=True)
class Record:
    """The result of one operation.

    Attributes:
        operation: Its name and value.
        optimizer_step: Optimizer steps done before it.
        reason: Why it was due.
        status: Whether it was done, or failed and was skipped.
        effect: What it did, or why it failed.
    """

    operation: str
    optimizer_step: int
    reason: str
    status: Literal["done", "skipped"]
    effect: str


class OperationQueue:
    """The operations of one run, in order, and the results of those that were reached.

    Args:
        operations: From `read_operations`.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = tuple(operations)
        self.records: list[Record] = []
        keys = numbered(entry_key(str(each), [each.name, each.value], each.trigger) for each in operations)
        self.titles = {key: str(each) for key, each in zip(keys, self.operations, strict=True)}
        self._left = dict(zip(keys, self.operations, strict=True))
        self._done: dict[str, str] = {}  # key -> title
        self._since = 0  # the optimizer step of the previous operation, or of the first step
        self._loss: float | None = None  # the latest value

    @property
    def next(self) -> Operation | None:
        """The next operation; None when all are done."""
        return next(iter(self._left.values()), None)

    @property
    def pending(self) -> tuple[Operation, ...]:
        """The operations that were not reached yet."""
        return tuple(self._left.values())

    @property
    def looks_at_loss(self) -> bool:
        """Whether a pending operation depends on the loss."""
        return any(operation.trigger.looks_at_loss for operation in self.pending)

    def resolve(self, shares: RunShares) -> None:
        """Put steps in place of shares of the run."""
        self.operations = shares.resolved(self.operations)
        every = dict(zip(self.titles, self.operations, strict=True))
        self._left = {key: every[key] for key in self._left}

    def begin(self, optimizer_step: int) -> None:
        """Start the first wait at this step."""
        self._since = optimizer_step

    def observe(self, loss: float) -> bool:
        """Record the latest loss; returns whether the next operation depends on it."""
        self._loss = loss
        return self.next is not None and self.next.trigger.looks_at_loss

    def reason(self, optimizer_step: int) -> str | None:
        """Why the next operation is due, in words; None if it is not."""
        if self.next is None:
            return None
        return self.next.trigger.reason(self._loss, optimizer_step - self._since)

    def deadline(self) -> int | None:
        """The optimizer step at which the next operation is due at the latest; None without a limit."""
        return None if self.next is None else self.next.trigger.deadline(self._since)

    def close(self, record: Record) -> None:
        """Record the result of the next operation, and move on."""
        key, operation = next(iter(self._left.items()))
        if operation.reevaluate:
            self._loss = None
        self._done[key] = str(self._left.pop(key))
        self._since = record.optimizer_step
        self.records.append(record)

    def state(self) -> dict[str, object]:
        """The state for a checkpoint, in plain types."""
        return {
            "done": self._done,
            "records": [asdict(record) for record in self.records],
            "since": self._since,
            "loss": self._loss,
        }

    def remember(self, state: SavedState) -> None:
        """Continue from `state`; what was done then is not done again, wherever it is in the list now."""
        done = match_done(state["done"], list(self.titles)).values()
        self._done = {key: self.titles[key] for key in done}
        self._left = {
            key: each for key, each in zip(self.titles, self.operations, strict=True) if key not in self._done
        }
        self.records = [Record(**record) for record in state["records"]]
        self._since, self._loss = state["since"], state["loss"]
