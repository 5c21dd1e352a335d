"""Prompts and answers from files: rows are read, grouped by what they ask, and split without leaks."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask
from lighter_freezers.experiments.data.rows import each_row

__all__ = ["LoadedRows", "held_out", "load_rows", "questions"]

SHARE_HELD_OUT = 0.1  # of the origins, where there is no file to validate on


@dataclass(frozen=True)
class LoadedRows:
    """The rows of files, and what was left out of them.

    Args:
        rows: Prompts and answers, in the order of the files; references are those of the whole group.
        num_without_answer: Rows that have no answer by the data's own convention.
        num_bad: Rows that were left out because a field is wrong.
        first_error: What is wrong with the first of these; empty if there is none.
    """

    rows: tuple[PromptedRow, ...]
    num_without_answer: int = 0
    num_bad: int = 0
    first_error: str = ""


def load_rows(task: PromptedTask, files: Sequence[Path], drop_bad: bool = False) -> LoadedRows:
    """Read the rows of a task.

    Args:
        task: Knows what the fields mean.
        files: .jsonl, .csv or .parquet files.
        drop_bad: Leave rows with a wrong field out, instead of an error for the first.

    Raises:
        ValueError: A file cannot be read, a row is wrong, or none is left.
    """
    found: list[PromptedRow | None | ValueError] = []
    for file in files:
        found.extend(_read(task, file, drop_bad))
    rows = [row for row in found if isinstance(row, PromptedRow)]
    errors = [error for error in found if isinstance(error, ValueError)]
    if not rows:
        why = f" The first: {errors[0]}" if errors else ""
        names = ", ".join(str(file) for file in files)
        raise ValueError(f"None of the {len(found)} rows of {names} can be used for {task.name}.{why}")
    return LoadedRows(
        _with_all_references(rows), found.count(None), len(errors), str(errors[0]) if errors else ""
    )


def _read(task: PromptedTask, file: Path, drop_bad: bool) -> Iterator[PromptedRow | None | ValueError]:
    read = task.reader_of(file)
    for row in each_row(file, fields=()):
        try:
            yield read(row)
        except ValueError as error:
            if not drop_bad:
                raise
            yield error


def _with_all_references(rows: Sequence[PromptedRow]) -> tuple[PromptedRow, ...]:
    """Each row with the answers of its whole group, every answer once."""
    answers: dict[str, dict[str, None]] = {}
    for row in rows:
        answers.setdefault(row.group, {})[row.target] = None
    return tuple(replace(row, references=tuple(answers[row.group])) for row in rows)


def questions(rows: Sequence[PromptedRow]) -> list[list[PromptedRow]]:
    """The rows of each group, in the order in which the groups appear."""
    groups: dict[str, list[PromptedRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return list(groups.values())


def held_out(rows: Sequence[PromptedRow]) -> tuple[tuple[PromptedRow, ...], tuple[PromptedRow, ...]]:
    """Split rows into those to train on and a tenth to validate on, whole origins at a time.

    The origins are chosen by a hash of their text: another seed, machine or order of rows chooses the same.

    Raises:
        ValueError: All rows are of one origin.
    """
    origins = sorted(
        {row.origin for row in rows}, key=lambda origin: hashlib.sha256(origin.encode()).digest()
    )
    if len(origins) < 2:
        raise ValueError(
            f"All {len(rows)} rows have one origin, like {rows[0].where}, so none can be held out. Give "
            "`val_file:`."
        )
    chosen = set(origins[: max(1, round(SHARE_HELD_OUT * len(origins)))])
    return (
        tuple(row for row in rows if row.origin not in chosen),
        tuple(row for row in rows if row.origin in chosen),
    )
