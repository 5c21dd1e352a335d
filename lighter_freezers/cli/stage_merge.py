"""A file of stages brought up to date: what it says of stages that thaw the same stays, comments included."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lighter_freezers import arguments
from lighter_freezers.cli.config_text import Commented, as_list, child, indented
from lighter_freezers.layers.stage_list import read_stages

__all__ = ["merged_stages"]

_WRITTEN = re.compile(r"# thaws (nothing|.+ \([\d,]+ parameters, [\d.]+%\))")  # as stage_file writes it
_BOUNDS = ("until_step", "until_epoch", "until_metric", "until_early_stopping")


@dataclass(frozen=True)
class _Present:
    """A stage of the file: its value, and its lines from the comments above it on."""

    value: object
    node: yaml.Node
    begin: int
    lines: list[str]


def merged_stages(path: Path, entries: Sequence[Commented]) -> tuple[str, list[str]]:
    """The text of a file with new stages, in which those that thaw the same as before keep their text.

    Args:
        path: The file.
        entries: The new stages. Their comments replace those that the command wrote, since sizes may differ.

    Returns:
        The text, and what to warn of: stages that no new one stands for, which stand at its end as comments,
        and those whose bounds had to change.

    Raises:
        ValueError: It is no YAML, has no list of stages or several on one line, or would not be read again.
    """
    loaded = arguments.file_content("--merge", path)
    present = path.read_text(encoding="utf-8-sig")
    lines = [f"{line}\n" for line in present.splitlines()]
    nodes = _stage_nodes(yaml.compose(present, yaml.SafeLoader), lines)
    if not isinstance(loaded, Mapping) or list(loaded) != ["stages"] or not nodes:
        raise ValueError(
            "--merge needs a file with stages: and no other key, and each stage on lines of its own with its "
            "first key right behind the dash. Edit the file, or give --force to overwrite it."
        )
    column = lines[nodes[0].start_mark.line].index("-")
    begins = [_above_comments(lines, node.start_mark.line) for node in nodes]
    end = _above_comments(lines, len(lines))
    old: dict[frozenset[str], list[_Present]] = {}
    for value, node, *span in zip(loaded["stages"], nodes, begins, [*begins[1:], end], strict=True):
        old.setdefault(_thaws(value), []).append(_Present(value, node, span[0], lines[slice(*span)]))
    texts: list[str] = []
    warnings: list[str] = []
    for entry in entries:
        same = old.get(_thaws(entry.value))
        texts.append(_kept(same.pop(0), entry, column, warnings) if same else as_list([entry], column))
    left_out = [each for several in old.values() for each in several]
    warnings += [
        f"no new stage stands for the one that thaws {_words(each.value)}: it is at the end as comments"
        for each in left_out
    ]
    comments = [_commented_out(each.lines, column) for each in left_out]
    text = "".join([*lines[: begins[0]], *texts, *lines[end:], *comments])
    _check(text, entries, path)
    return text, warnings


def _stage_nodes(root: yaml.Node | None, lines: Sequence[str]) -> list[yaml.Node]:
    """The stages, if each stands right behind a dash that begins its line; else none."""
    found = child(root, "stages")
    nodes = found.value if isinstance(found, yaml.SequenceNode) and not found.flow_style else []
    return nodes if all(lines[node.start_mark.line].strip()[:1] == "-" for node in nodes) else []


def _above_comments(lines: Sequence[str], line: int) -> int:
    """The first of the comments and empty lines above an entry; those of `stages:` itself stay with it."""
    while lines[line - 1].strip()[:1] in ("#", ""):
        line -= 1
    return line


def _thaws(stage: object) -> frozenset[str]:
    thaw = stage.get("thaw", ()) if isinstance(stage, Mapping) else ()
    return frozenset([thaw] if isinstance(thaw, str) else thaw or ())


def _words(stage: object) -> str:
    return ", ".join(sorted(_thaws(stage))) or "nothing"


def _commented_out(lines: Sequence[str], column: int) -> str:
    """The text of a stage as comments, so that nothing of it is lost."""
    text = "no new stage stands for this one:\n" + textwrap.dedent("".join(lines))
    return "".join(f"{' ' * column}# {line}".rstrip() + "\n" for line in text.splitlines())


def _kept(present: _Present, entry: Commented, column: int, warnings: list[str]) -> str:
    """The text of a stage as it stood, with the comment that the command wrote, and bounds, up to date."""
    lines = list(present.lines)
    dash = present.node.start_mark.line - present.begin
    if dash and _WRITTEN.fullmatch(lines[dash - 1].strip()):
        lines[dash - 1] = "".join(f"{' ' * column}# {comment}\n" for comment in entry.comments)
    bounds = {key: value for key, value in entry.value.items() if key in _BOUNDS}
    had = [key for key in _BOUNDS if isinstance(present.value, Mapping) and key in present.value]
    if bounds and not had:
        lines.append(indented(yaml.safe_dump(bounds), _key_column(present)))
        warnings.append(f"the stage that thaws {_words(present.value)} is not the last now: it got {bounds}")
    if had and not bounds:
        _comment_bounds_out(present, lines)
        warnings.append(
            f"the stage that thaws {_words(present.value)} is the last now and ends with the run: "
            f"{', '.join(had)} became a comment"
        )
    return "".join(lines)


def _key_column(present: _Present) -> int:
    """That of the keys of a stage.

    Raises:
        ValueError: It is written in braces.
    """
    if not isinstance(present.node, yaml.MappingNode) or present.node.flow_style:
        raise ValueError(
            f"--merge has to change how the stage that thaws {_words(present.value)} ends. Write its keys on "
            "lines of their own, without braces, or give --force to overwrite the file."
        )
    return int(present.node.value[0][0].start_mark.column)


def _comment_bounds_out(present: _Present, lines: list[str]) -> None:
    """Make comments of the lines of all bounds; one behind the dash stays, and is refused by `_check`."""
    column = _key_column(present)
    keys = [key for key, _ in present.node.value]
    starts = [key.start_mark.line - present.begin for key in keys]
    dash = present.node.start_mark.line - present.begin
    for key, start, stop in zip(keys, starts, [*starts[1:], len(lines)], strict=True):
        for number in range(start, stop if key.value in _BOUNDS and start > dash else start):
            if lines[number].strip()[:1] not in ("#", ""):
                lines[number] = f"{' ' * column}# {lines[number][column:]}"


def _check(text: str, entries: Sequence[Commented], path: Path) -> None:
    """Refuse what a GradualUnfreezing would not read, or read as other stages."""
    wanted = [_thaws(entry.value) for entry in entries]
    try:
        stages = yaml.safe_load(text)["stages"]
        read_stages(stages, None, {})
        thaws = [_thaws(stage) for stage in stages]
        if thaws != wanted:
            same = [one == other for one, other in zip(thaws, wanted, strict=False)]
            raise ValueError(f"stages[{[*same, False].index(False)}] would thaw something else.")
    except (TypeError, ValueError, yaml.YAMLError) as error:
        number = re.search(r"stages\[(\d+)\]", str(error))
        which = f"the stage that thaws {_words(entries[int(number[1])].value)}" if number else "its stages"
        raise ValueError(
            f"--merge would write a file that cannot be read: {' '.join(str(error).split())} "
            f"Edit {which} in {path}, or give --force to overwrite the file."
        ) from error
