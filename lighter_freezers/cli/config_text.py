"""Adds callbacks to the text of a config, and leaves the rest as it was written. Only text and YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

__all__ = ["Commented", "add_callbacks", "as_list", "child", "indented"]


@dataclass(frozen=True)
class Commented:
    """An entry of a list in YAML, and the lines of comment above it."""

    comments: tuple[str, ...]
    value: Mapping[str, object]


def add_callbacks(text: str, callbacks: Sequence[Commented]) -> str:
    """Add callbacks before those that a config has below `trainer`.

    Args:
        text: A config with a `trainer`.
        callbacks: What to add, in this order.

    Raises:
        ValueError: `trainer` or its `callbacks` is a reference, or of the wrong type.
    """
    trainer = child(yaml.compose(text, yaml.SafeLoader), "trainer")
    if not isinstance(trainer, yaml.MappingNode):
        raise ValueError("trainer is not a mapping in this file. Write it out: _target_, callbacks, ...")
    if trainer.flow_style:
        return add_callbacks(_in_block_style(text, trainer), callbacks)
    present = child(trainer, "callbacks")
    if present is None:
        return _inserted(text, _line_behind_target(trainer), _below_key(callbacks, trainer.start_mark.column))
    if isinstance(present, yaml.SequenceNode) and present.value:
        if present.flow_style:
            return add_callbacks(_in_block_style(text, present), callbacks)
        return _inserted(
            text, _line_above_comments(text, present), as_list(callbacks, present.start_mark.column)
        )
    if isinstance(present, yaml.SequenceNode) or present.value in ("", "null", "~"):
        entries = "\n" + as_list(callbacks, trainer.start_mark.column + 2).rstrip("\n")
        return text[: present.start_mark.index].rstrip(" ") + entries + text[present.end_mark.index :]
    raise ValueError(
        "trainer::callbacks is not a list in this file. Write it as one, each callback after a dash."
    )


def as_list(callbacks: Sequence[Commented], column: int) -> str:
    """The entries of a list in block style, with their comments, indented to a column."""
    lines = []
    for callback in callbacks:
        lines += [f"# {comment}" for comment in callback.comments]
        first, *others = [line for item in callback.value.items() for line in _pair(*item)]
        lines += [f"- {first}", *(f"  {line}" for line in others)]
    return indented("\n".join(lines), column)


def _pair(key: str, value: object) -> list[str]:
    """The lines for a key and its value: lists in brackets, broken into lines where they are long."""
    in_brackets = None if isinstance(value, list) else False
    return str(yaml.safe_dump({key: value}, default_flow_style=in_brackets, width=80)).splitlines()


def indented(text: str, column: int) -> str:
    """All lines indented, with a line feed at the end."""
    return "".join(" " * column + line + "\n" if line.strip() else "\n" for line in text.splitlines())


def child(node: yaml.Node | None, key: str) -> Any:  # a node of any kind
    """The value of a key; None where there is none."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _line_behind_target(trainer: yaml.MappingNode) -> int:
    """The line after `_target_`, or before the first key where there is none."""
    target = child(trainer, "_target_")
    return trainer.start_mark.line if target is None else target.end_mark.line + 1


def _line_above_comments(text: str, entries: yaml.Node) -> int:
    """The line of the first entry of a list, or of the comments right above it."""
    lines, line = text.splitlines(), int(entries.start_mark.line)
    while lines[line - 1].lstrip()[:1] == "#":
        line -= 1
    return line


def _below_key(callbacks: Sequence[Commented], column: int) -> str:
    return " " * column + "callbacks:\n" + as_list(callbacks, column + 2)


def _inserted(text: str, line: int, addition: str) -> str:
    lines = text.splitlines(keepends=True)
    if line and not lines[line - 1].endswith("\n"):
        lines[line - 1] += "\n"
    return "".join([*lines[:line], addition, *lines[line:]])


def _in_block_style(text: str, node: yaml.Node) -> str:
    """The same config, with a value in block style that was written in brackets."""
    start, end = node.start_mark.index, node.end_mark.index
    column = len(text[:start].splitlines()[-1]) - len(text[:start].splitlines()[-1].lstrip())
    value = yaml.safe_load(text[start:end])
    dumped = yaml.safe_dump(value, sort_keys=False)
    return text[:start].rstrip(" ") + "\n" + indented(dumped, column + 2).rstrip("\n") + text[end:]
