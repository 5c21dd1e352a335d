"""Prompts and answers: the description of a generation task, and how its rows are read and split."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lighter_freezers.experiments.data.rows import OF_THE_HUB, SUFFIXES, Row, each_row
from lighter_freezers.selection.names import closest_names

__all__ = [
    "LoadedRows",
    "PromptedRow",
    "PromptedTask",
    "RowReader",
    "held_out",
    "load_rows",
    "prompt_with",
    "prompted",
    "questions",
]


@dataclass(frozen=True)
class PromptedRow:
    """A prompt for a language model, with its answer.

    Args:
        prompt: The input of the model, the same in training and evaluation; it ends where the answer starts.
        target: The answer to learn, without the end token.
        references: All correct answers to this prompt; `target` is one of them.
        group: Rows of the same group have the same question. It is evaluated once, against all references.
        origin: Rows of the same origin (a dialogue, a table, a premise, a module) are never separated by a
            split made here.
        where: Its file and line, for errors.
        context: The first and the last character of the prompt between which it may be cut if it is too long;
            the cut is at the end of this part. (0, 0) means nowhere.
    """

    prompt: str
    target: str
    references: tuple[str, ...]
    group: str
    origin: str = ""
    where: str = ""
    context: tuple[int, int] = (0, 0)

    def with_context(self, num_characters: int) -> str:
        """The prompt with only this many characters of the part that may be cut."""
        begin, end = self.context
        return self.prompt[: begin + num_characters] + self.prompt[end:]


RowReader = Callable[[Row], PromptedRow | None]
FileReader = Callable[[Path], Iterator[Row]]
PATTERNS = {"train": ("train*",), "val": ("val*", "dev*"), "test": ("test*",)}


@dataclass(frozen=True)
class PromptedTask:
    """A generation task: its files, how a row becomes a prompt and an answer, and its metrics.

    Args:
        name: As in `task:`.
        metrics: Names in `lighter_freezers.experiments.evaluation.metrics.METRICS`.
        max_new_tokens: Tokens to generate at most, including the end token.
        patterns: For each split, globs for the names of its files in a folder, or of the hub's splits; the
            first glob with a match is used. A split that is left out has `train*`, `val*` or `dev*`, `test*`.
        reader_of: Returns the function that reads the rows of a file, where that depends on files beside it;
            instead of `read`.
        left_out: A description of these rows, for a log line.
        hub: Where `source: hub` finds the files: `https://` URLs, or the name of a data set on the hub. Empty
            if it is not on the hub.
        labels: All answers there are, for accuracy; empty where answers are free text.
        formats: Suffix, such as `.xml` -> the function that yields the rows of such a file, for formats other
            than JSONL, CSV, Parquet and Arrow.
        read: Turns a row into a prompt and an answer; `prompted` helps. A row without an answer by the
            convention of the data set becomes None.
        on_this_machine: For a data set that every machine has: collects it in the cache folder that it is
            given, and returns the folder of its files and a description. Its source is `standard_library`.

    Raises:
        TypeError: `metrics` or `hub` is one text instead of a tuple.
        ValueError: It has no way to read a row, or two.
    """

    name: str
    metrics: tuple[str, ...]
    max_new_tokens: int
    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reader_of: Callable[[Path], RowReader] | None = None
    left_out: str = ""
    hub: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    formats: Mapping[str, FileReader] = field(default_factory=dict)
    read: RowReader | None = None
    on_this_machine: Callable[[Path | None], tuple[Path, str]] | None = None

    def __post_init__(self) -> None:
        if (self.read is None) == (self.reader_of is None):
            raise ValueError(
                f"The task {self.name} needs either `read`, a function of a row, or `reader_of`, which "
                "returns one for a file."
            )
        for name in ("metrics", "hub"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"The task {self.name} needs a tuple of texts as `{name}`, not one text.")
        object.__setattr__(self, "patterns", {**PATTERNS, **self.patterns})

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that can be read."""
        return (*self.formats, *SUFFIXES, OF_THE_HUB)

    def reader(self, file: Path) -> RowReader:
        """The function that reads the rows of a file."""
        if self.reader_of is not None:
            return self.reader_of(file)
        assert self.read is not None
        return self.read

    def rows(self, file: Path) -> Iterator[Row]:
        """The rows of a file, by its suffix.

        Raises:
            ValueError: It cannot be read.
        """
        read = self.formats.get(file.suffix.lower())
        return each_row(file, fields=()) if read is None else read(file)


def prompt_with(
    instruction: str, parts: Mapping[str, str], answer: str, context: str
) -> tuple[str, tuple[int, int]]:
    """Format a prompt: the instruction, each part below its title, and the title of the answer.

    Args:
        instruction: The instruction, one sentence.
        parts: Texts by their titles.
        answer: The title of the answer.
        context: The title of the part that may be cut.

    Returns:
        The prompt, and the start and end of the part that may be cut.

    Raises:
        ValueError: No part has that title.
    """
    _check_title("context", context, parts)
    text, span = f"### Instruction: {instruction}\n\n", (0, 0)
    for title, content in parts.items():
        text += f"### {title}:\n"
        if title == context:
            span = (len(text), len(text) + len(content))
        text += f"{content}\n\n"
    return f"{text}### {answer}:\n", span


def prompted(
    row: Row,
    instruction: str,
    parts: Mapping[str, str],
    title: str,
    answer: str,
    *,
    cut: str,
    origin: str = "",
    group: str = "",
) -> PromptedRow:
    """A row as a prompt in the form of `prompt_with`, with its answer.

    Args:
        row: The row, for errors.
        instruction: The instruction, one sentence.
        parts: Texts by their titles.
        title: The title of the answer.
        answer: The answer to learn.
        cut: The title of the part that may be cut where the row is too long.
        origin: Rows of one origin stay together when validation rows are held out. Empty: those with the same
            text in the part that may be cut.
        group: Rows of one group are one question with several correct answers. Empty: it has no other.

    Raises:
        ValueError: No part has the title in `cut`.
    """
    _check_title("cut", cut, parts)
    prompt, context = prompt_with(instruction, parts, title, cut)
    together = origin or parts[cut]
    return PromptedRow(prompt, answer, (answer,), group or row.where, together, row.where, context)


def _check_title(argument: str, title: str, parts: Mapping[str, str]) -> None:
    if title not in parts:
        closest = ", ".join(map(repr, closest_names(str(title), parts, 2))) or "none: there are no parts"
        raise ValueError(f"{argument}={title!r} is the title of no part of the prompt. Closest: {closest}.")


SHARE_HELD_OUT = 0.1  # of the origins, where there is no validation file


@dataclass(frozen=True)
class LoadedRows:
    """The rows of files, and how many were left out.

    Args:
        rows: Prompts and answers, in the order of the files; references are those of the whole group.
        num_without_answer: Rows without an answer by the convention of the data set.
        num_bad: Rows that were left out because a field is invalid.
        first_error: The error of the first of these; empty if there is none.
    """

    rows: tuple[PromptedRow, ...]
    num_without_answer: int = 0
    num_bad: int = 0
    first_error: str = ""


def load_rows(task: PromptedTask, files: Sequence[Path], drop_bad: bool = False) -> LoadedRows:
    """Read the rows of a task.

    Args:
        task: Defines the fields.
        files: .jsonl, .csv or .parquet files, or others that the task can read.
        drop_bad: Leave rows with an invalid field out, instead of raising an error for the first.

    Raises:
        TypeError: The task reads a row as something else than a `PromptedRow` or None.
        ValueError: A file cannot be read, a row is invalid, or none is left.
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
    read = task.reader(file)
    for row in task.rows(file):
        try:
            found = read(row)
        except ValueError as error:
            if not drop_bad:
                raise
            yield error
            continue
        if found is not None and not isinstance(found, PromptedRow):
            kind = type(found).__name__
            raise TypeError(f"{row.where}: {task.name} reads a row as PromptedRow or None, not as {kind}.")
        yield found


def _with_all_references(rows: Sequence[PromptedRow]) -> tuple[PromptedRow, ...]:
    """Each row with the distinct answers of its whole group."""
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
    """Split rows into training rows and a tenth for validation, by whole origins.

    The origins are chosen by a hash of their text, independent of seed, machine and order of rows.

    Raises:
        ValueError: All rows have the same origin.
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
