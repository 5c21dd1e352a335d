"""Reads operations from a file or a list, and checks all that can be checked without a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lighter_freezers import arguments
from lighter_freezers.engine.triggers import LossOrWait, parse_loss_or_wait
from lighter_freezers.layers.operations.kinds import KINDS, Effect, Kind, OperationContext, Value
from lighter_freezers.selection.names import closest_names

__all__ = ["Operation", "read_operations"]

KEYS = ("name", "value", "trigger_loss", "max_wait_iters", "reevaluate", "desc")


@dataclass(frozen=True)
class Operation:
    """One entry of a schedule.

    Attributes:
        argument: Its place in the list, `operations[2]`, for errors.
        name: The name of the operation.
        value: Its value.
        trigger: When to do it.
        reevaluate: Whether the next operation waits for a loss that was measured after this one.
        desc: The user's description, for the log.
    """

    argument: str
    name: str
    value: Value
    trigger: LossOrWait
    reevaluate: bool = False
    desc: str = ""

    @property
    def kind(self) -> Kind:
        """What it has in common with others of its name."""
        return KINDS[self.name]

    def perform(self, context: OperationContext) -> Effect:
        """Do it.

        Raises:
            RuntimeError: It cannot be done in the current state; nothing is changed then.
            ValueError: The same.
        """
        return self.kind.perform(context, self.value, self.argument)

    def __str__(self) -> str:
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return " ".join([self.name, *(f"{value}" for value in values if value is not None)])


def read_operations(source: object, monitor: str) -> tuple[Operation, ...]:
    """Read a list of operations.

    Args:
        source: The list itself, or the path of a YAML or JSON file with the list, or with a mapping that has
            it under `operations`. The file is only read.
        monitor: The loss that the triggers use.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: An entry or one of its values is unknown; the message says where, and what there is.
    """
    argument, entries = ("operations", source) if not isinstance(source, (str, Path)) else _load(Path(source))
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise TypeError(f"{argument} must be a list of operations, or a YAML or JSON file. Got {entries!r}.")
    if not entries:
        raise ValueError(f"{argument} is empty: there is nothing to do. Give one operation, or remove it.")
    return tuple(_operation(f"{argument}[{index}]", entry, monitor) for index, entry in enumerate(entries))


def _load(path: Path) -> tuple[str, object]:
    """The name of the list in errors, and the list."""
    if path.is_file() and path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"operations: '{path}' is neither .yaml, .yml nor .json.")
    loaded = arguments.file_content("operations", path)
    if isinstance(loaded, Mapping) and "operations" in loaded:
        loaded = loaded["operations"]
    return f"{path.name}: operations", loaded


def _operation(argument: str, entry: object, monitor: str) -> Operation:
    if not isinstance(entry, Mapping):
        raise TypeError(f"{argument} must be a mapping with name and value. Got {entry!r}.")
    name = entry.get("name")
    if not isinstance(name, str) or name not in KINDS:
        close = ", ".join(closest_names(str(name), KINDS, 3))
        raise ValueError(
            f"{argument}: unknown operation {name!r}. Closest: {close}. All: {', '.join(KINDS)}."
        )
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        hint = " The checkpoint stores what is done: remove 'completed'." if "completed" in unknown else ""
        raise ValueError(f"{argument} ({name}) has unknown keys {unknown}. Keys: {', '.join(KEYS)}.{hint}")
    desc = entry.get("desc")
    if desc is not None and not isinstance(desc, str):
        raise TypeError(f"{argument}.desc must be a text. Got {desc!r}.")
    return Operation(
        argument=argument,
        name=name,
        value=KINDS[name].read(f"{argument}.value ({name})", entry.get("value")),
        trigger=parse_loss_or_wait(argument, entry, monitor),
        reevaluate=arguments.flag(f"{argument}.reevaluate", entry.get("reevaluate", False)),
        desc=desc or "",
    )
