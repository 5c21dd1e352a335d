"""A file of stages brought up to date: what it says of stages that thaw the same stays, comments included."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from lighter_freezers import arguments
from lighter_freezers.cli.config_text import Commented, as_list

__all__ = ["merged_stages"]


def merged_stages(path: Path, entries: Sequence[Commented]) -> tuple[str, list[str]]:
    """The text of a file with new stages, in which those that thaw the same as before keep their text.

    Args:
        path: The file.
        entries: The new stages. Their comments replace those of the same beginning, since sizes may differ.

    Returns:
        The text, and what the stages thaw that no new one stands for; they stand at its end as comments.

    Raises:
        ValueError: It is no YAML, has no list of stages, or several stages on one line.
    """
    loaded = arguments.file_content("--merge", path)
    present = path.read_text(encoding="utf-8-sig")
    root = yaml.compose(present, yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    found = next((value for key, value in pairs if key.value == "stages"), None)
    nodes = found.value if isinstance(found, yaml.SequenceNode) and not found.flow_style else []
    starts = [each.start_mark.line for each in nodes]
    lines = present.splitlines(keepends=True)
    if not isinstance(loaded, Mapping) or found is None or not starts:
        raise ValueError(
            "--merge needs a file with stages: and each of them behind a dash on a line of its own."
        )
    begins = [_above_comments(lines, start) for start in starts]
    blocks = ["".join(lines[begin:end]) for begin, end in zip(begins, [*begins[1:], None], strict=True)]
    old = {_thaws(stage): block for stage, block in zip(loaded["stages"], blocks, strict=True)}
    column = found.start_mark.column
    texts = [_refreshed(old.pop(_thaws(each.value), None), each, column) for each in entries]
    left_out = [_commented_out(block, column) for block in old.values()]
    names = [", ".join(sorted(thaw)) or "nothing" for thaw in old]
    return "".join([*lines[: begins[0]], *texts, *left_out]), names


def _commented_out(block: str, column: int) -> str:
    """The text of a stage as comments, so that nothing of it is lost."""
    lines = ["no stage thaws the same as this one did:", *(line[column:] for line in block.splitlines())]
    return "".join(f"{' ' * column}# {line}".rstrip() + "\n" for line in lines)


def _above_comments(lines: Sequence[str], line: int) -> int:
    """The first of the comments and empty lines above an entry; those of `stages:` itself stay with it."""
    while lines[line - 1].strip()[:1] in ("#", ""):
        line -= 1
    return line


def _thaws(stage: object) -> frozenset[str]:
    thaw = stage.get("thaw", ()) if isinstance(stage, dict) else ()
    return frozenset([thaw] if isinstance(thaw, str) else thaw or ())


def _refreshed(block: str | None, entry: Commented, column: int) -> str:
    """The text of a stage as it stood, with the comments that the command wrote brought up to date."""
    if block is None:
        return as_list([entry], column)
    lines = block if block.endswith("\n") else block + "\n"
    for comment in entry.comments:
        word = comment.split()[0]
        lines = "".join(
            f"{' ' * column}# {comment}\n" if line.split()[:2] == ["#", word] else line
            for line in lines.splitlines(keepends=True)
        )
    return lines
