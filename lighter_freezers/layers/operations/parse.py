"""Operations as they stand in a file or a list: read, and checked as far as that goes without a model."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lighter_freezers import arguments
from lighter_freezers.engine.triggers import LossOrWait, parse_loss_or_wait
from lighter_freezers.selection.names import closest_names

__all__ = ["NAMES", "Operation", "read_operations"]

KEYS = ("name", "value", "trigger_loss", "max_wait_iters", "reevaluate", "desc")
Value = str | int | float | tuple[str, int] | None


@dataclass(frozen=True)
class Operation:
    """One entry of a schedule.

    Attributes:
        argument: Where it stands, `operations[2]`, for errors.
        name: What to do.
        value: With what.
        trigger: When.
        reevaluate: Whether the next operation waits for a loss that was measured after this one.
        desc: What the user says about it, for the log.
    """

    argument: str
    name: str
    value: Value
    trigger: LossOrWait
    reevaluate: bool = False
    desc: str = ""

    def __str__(self) -> str:
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return " ".join([self.name, *(f"{value}" for value in values if value is not None)])


def read_operations(source: object, monitor: str) -> tuple[Operation, ...]:
    """Read a list of operations.

    Args:
        source: The list itself, or the path of a YAML or JSON file with the list in it, or with a mapping
            that has it under `operations`. The file is only read.
        monitor: The loss that the triggers look at.

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
    """What errors call the list in a file, and the list."""
    if not path.is_file():
        raise ValueError(f"operations: there is no file '{path}'. Give its path from '{Path.cwd()}'.")
    if path.suffix == ".json":
        loaded = json.loads(path.read_text())
    elif path.suffix in (".yaml", ".yml"):
        import yaml

        loaded = yaml.safe_load(path.read_text())
    else:
        raise ValueError(f"operations: '{path}' is neither .yaml, .yml nor .json.")
    return f"{path.name}: operations", loaded["operations"] if _has_list(loaded) else loaded


def _has_list(loaded: object) -> bool:
    return isinstance(loaded, Mapping) and "operations" in loaded


def _operation(argument: str, entry: object, monitor: str) -> Operation:
    if not isinstance(entry, Mapping):
        raise TypeError(f"{argument} must be a mapping with name and value. Got {entry!r}.")
    name = entry.get("name")
    if not isinstance(name, str) or name not in NAMES:
        close = ", ".join(closest_names(str(name), NAMES, 3))
        raise ValueError(
            f"{argument}: unknown operation {name!r}. Closest: {close}. All: {', '.join(NAMES)}."
        )
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        hint = " What is done stands in the checkpoint: remove 'completed'." if "completed" in unknown else ""
        raise ValueError(f"{argument} ({name}) does not know {unknown}. Keys: {', '.join(KEYS)}.{hint}")
    desc = entry.get("desc")
    if desc is not None and not isinstance(desc, str):
        raise TypeError(f"{argument}.desc must be a text. Got {desc!r}.")
    return Operation(
        argument=argument,
        name=name,
        value=NAMES[name](f"{argument}.value ({name})", entry.get("value")),
        trigger=parse_loss_or_wait(argument, entry, monitor),
        reevaluate=arguments.flag(f"{argument}.reevaluate", entry.get("reevaluate", False)),
        desc=desc or "",
    )


def _layer(argument: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{argument} must be a layer such as 'attn.2', 'mlp.*' or 'wte'. Got {value!r}.")
    return value


def _rank(argument: str, value: object) -> int:
    rank = arguments.count(argument, value)
    if rank is None:
        raise TypeError(f"{argument} must be a LoRA rank such as 8, or 0 for none. Got None.")
    return rank


def _layer_and_rank(argument: str, value: object) -> tuple[str, int]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{argument} must be [layer, rank] such as ['attn.3', 16]. Got {value!r}.")
    return _layer(f"{argument}[0]", value[0]), _rank(f"{argument}[1]", value[1])


def _layer_or_nothing(argument: str, value: object) -> str | None:
    return None if value is None else _layer(argument, value)


def _nothing(argument: str, value: object) -> None:
    if value is not None:
        raise TypeError(f"{argument} must be null: it takes no value. Got {value!r}.")


NAMES: Mapping[str, Callable[[str, Any], Value]] = {  # name -> how its value is read
    "freeze_layer": _layer,
    "unfreeze_layer": _layer,
    "set_layer_lora_rank": _layer_and_rank,
    "set_attn_lora_rank": _rank,
    "set_embedding_lora_rank": _rank,
    "merge_lora_weights": _layer_or_nothing,
    "set_lr": arguments.positive,
    "scale_lr": arguments.positive,
    "reset_lr_schedule": _nothing,
}
