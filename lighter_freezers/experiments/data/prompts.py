"""Prompts and answers: what a generation task is made of, how its rows are read, and how they are split."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lighter_freezers.experiments.data.rows import Row, each_row

__all__ = [
    "LoadedRows",
    "PromptedRow",
    "PromptedTask",
    "RowReader",
    "held_out",
    "load_rows",
    "prompt_with",
    "questions",
]


@dataclass(frozen=True)
class PromptedRow:
    """One question to a language model, with its answer.

    Args:
        prompt: What the model reads, in training and in evaluation alike; it ends where the answer begins.
        target: The answer to learn, without the token that ends it.
        references: All good answers to this prompt; `target` is one of them.
        group: Rows of the same group ask the same thing. They are evaluated once, against all references.
        origin: Rows of the same origin (a dialogue, a table, a premise, a module) never stand on two sides
            of a split that is made here.
        where: The file and the line that it is from, for errors.
        context: From which to which character of the prompt it may be cut if all is too long; the end of this
            part goes first. (0, 0) means nowhere.
    """

    prompt: str
    target: str
    references: tuple[str, ...]
    group: str
    origin: str = ""
    where: str = ""
    context: tuple[int, int] = (0, 0)

    def with_context(self, num_characters: int) -> str:
        """The prompt with only so many characters of the part that may be cut."""
        begin, end = self.context
        return self.prompt[: begin + num_characters] + self.prompt[end:]


RowReader = Callable[[Row], PromptedRow | None]


@dataclass(frozen=True)
class PromptedTask:
    """A generation task: where its data are, how a row becomes a prompt and an answer, and what measures it.

    Args:
        name: As in `task:`.
        metrics: Names in `lighter_freezers.experiments.evaluation.metrics.METRICS`.
        max_new_tokens: Tokens to generate at most, with the one that ends the answer.
        patterns: For each split, globs for the names of its files in a folder or on the hub; the files of the
            first glob that finds any are the split's.
        reader_of: Gives, for a file, what turns its rows into prompts and answers. A row that has no answer
            by the data's own convention becomes None.
        left_out: Which rows these are, in words for a log line.
        hub: Where `source: hub` finds the files: `https://` addresses, or the name of a data set on the hub.
            Empty if they are nowhere on the hub.
    """

    name: str
    metrics: tuple[str, ...]
    max_new_tokens: int
    patterns: Mapping[str, Sequence[str]]
    reader_of: Callable[[Path], RowReader]
    left_out: str = ""
    hub: tuple[str, ...] = ()


def prompt_with(
    instruction: str, parts: Mapping[str, str], answer: str, context: str
) -> tuple[str, tuple[int, int]]:
    """Lay out a prompt: the instruction, each part below its title, and the title of the answer.

    Args:
        instruction: What to do, a sentence.
        parts: Texts by their titles.
        answer: The title of the answer.
        context: The title of the part that may be cut.

    Returns:
        The prompt, and where in it the part that may be cut begins and ends.
    """
    text, span = f"### Instruction: {instruction}\n\n", (0, 0)
    for title, content in parts.items():
        text += f"### {title}:\n"
        if title == context:
            span = (len(text), len(text) + len(content))
        text += f"{content}\n\n"
    return f"{text}### {answer}:\n", span


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
