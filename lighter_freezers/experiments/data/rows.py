"""Reads the rows of a JSONL, CSV, Parquet or Arrow file, with the place of each, whatever the fields mean.

Reading is strict: what cannot be read is an error that names file, line and field; no row is skipped.
`datasets` reads Parquet and Arrow. JSONL and CSV are read here, because there it knows no lines and changes
values silently: it fills up a short row, renames a column that is there twice, takes `NA` for a missing
value, turns 1 into 1.0 because of another row, and does not tell a missing field from a null.
"""

import csv
import glob
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lighter_freezers._extras import require
from lighter_freezers.experiments.data.corpus import Corpus

__all__ = ["OF_THE_HUB", "Row", "RowFiles", "SUFFIXES", "each_row", "read_rows", "shown"]

SUFFIXES = (".jsonl", ".csv", ".parquet")
OF_THE_HUB = ".arrow"  # what `datasets` keeps of its data sets
ROWS_AT_A_TIME = 1000
MAX_SHOWN = 60  # characters of a value in an error
BOM = "\ufeff"


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Args:
        file: The file.
        line: The line on which it starts, counted from 1; in other files than JSONL and CSV the number of
            the row.
        values: Its fields by name: strings from a CSV file, JSON types from a JSONL or Parquet file.
        is_text: Whether it is from a CSV file, so that numbers and lists are written as strings.
    """

    file: Path
    line: int
    values: dict[str, object]
    is_text: bool

    @property
    def where(self) -> str:
        """Its file and line, for an error."""
        return f"{self.file}, {'line' if _suffix(self.file) in ('.jsonl', '.csv') else 'row'} {self.line}"

    def error(self, field: str, expected: str, got: str) -> ValueError:
        """The error for a field: its place, what was expected, and what it has."""
        return ValueError(f"{self.where}, field '{field}': expected {expected}, got {got}.")


@dataclass(frozen=True)
class RowFiles:
    """The user's own rows, a JSONL or CSV file for each split.

    Args:
        train: Rows to train on.
        val: Rows to validate on.
        test: Rows to test on and to predict. None if there are none.
    """

    train: Path
    val: Path
    test: Path | None = None

    def read(self, split: str, fields: Sequence[str]) -> list[Row]:
        """The rows of `train`, `val` or `test`.

        Raises:
            ValueError: There is no file for the split, or it cannot be read.
        """
        file = {"train": self.train, "val": self.val, "test": self.test}[split]
        if file is None:
            raise ValueError(f"There is no {split} file. Give `{split}_file:` a .jsonl or .csv file.")
        return read_rows(file, fields)

    def corpus(self, texts: Iterable[str]) -> Corpus:
        """The texts of the training rows as a corpus; a tokenizer must not learn from other splits."""
        return Corpus(train=tuple(texts), val=(), test=(), source=f"rows of {self.train}")


def shown(value: object) -> str:
    """A value for an error: shortened, and with its type unless it is a string."""
    text = repr(value)
    text = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"


def read_rows(file: Path, fields: Sequence[str]) -> list[Row]:
    """Read all rows of a .jsonl, .csv, .parquet or .arrow file. Blank lines are skipped, other fields kept.

    Args:
        file: A JSONL file, one JSON object a line; a CSV file with the names of its columns first, both in
            UTF-8; or a Parquet or Arrow file, which needs `datasets`.
        fields: Names that every row must have.

    Raises:
        ValueError: There is no such file, it is not UTF-8 or not Parquet, it has no rows, or a row is not a
            JSON object, has more or fewer columns than the header or lacks a field.
        ImportError: It is a Parquet or Arrow file and `datasets` is not installed.
    """
    rows = list(each_row(file, fields))
    if not rows:
        with_fields = f" with the fields {', '.join(fields)}" if fields else ""
        raise ValueError(f"{file} has no rows. Expected at least one{with_fields}.")
    return rows


def each_row(file: Path, fields: Sequence[str]) -> Iterator[Row]:
    """Yield the rows that `read_rows` reads, one at a time, to save memory; possibly none."""
    if not file.is_file():
        raise ValueError(f"The file {file} does not exist (working directory: {Path.cwd()}).")
    if _suffix(file) not in (*SUFFIXES, OF_THE_HUB):
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise ValueError(f"{file}: expected the suffix {known}, got {file.suffix or 'none'!r}.")
    if _suffix(file) == ".csv":
        yield from _csv(file, fields)
        return
    is_json = _suffix(file) == ".jsonl"
    for number, values in _jsonl(file, fields) if is_json else enumerate(_typed(file), start=1):
        row = Row(file, number, values, is_text=False)
        for field in fields:
            if field not in values:
                expected = f"expected in every row, but this one has {_listed(list(values))}"
                raise ValueError(f"{row.where}, field '{field}': {expected}.")
        yield row


def _suffix(file: Path) -> str:
    return file.suffix.lower()


def _typed(file: Path) -> Iterator[dict[str, object]]:
    """The fields of each row of Parquet or Arrow; lists and nested fields are Python's lists and dicts."""
    kind = _suffix(file).removeprefix(".")
    require(f"The {kind} file {file}", "datasets")
    from datasets import load_dataset
    from pyarrow import ArrowException

    options = {"batch_size": ROWS_AT_A_TIME} if kind == "parquet" else {}  # without it no empty file is read
    try:  # streamed: nothing is copied to a cache, so nothing in one can be out of date
        rows = load_dataset(kind, data_files=glob.escape(str(file)), split="train", streaming=True, **options)
        tables = rows.with_format("arrow").iter(ROWS_AT_A_TIME)
        for table in tables:
            yield from table.to_pylist()
    except (ArrowException, OSError, ValueError) as error:  # ValueError: a type that `datasets` does not know
        raise ValueError(
            f"{file} cannot be read as {kind.capitalize()}: {str(error).rstrip('.')}."
        ) from error


def _decoded(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file}, line {line}: expected UTF-8, got the byte 0x{content[error.start]:02x}. "
            "Save the file as UTF-8."
        ) from error


def _jsonl(file: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, object]]]:
    """The number and the fields of each line that is not blank."""
    lines = _decoded(file).split("\n")  # a JSON string may contain other line ends
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_fields)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: expected a JSON object, but {error}.") from error
        if not isinstance(values, dict):
            raise ValueError(
                f"{file}, line {number}: expected a JSON object such as {_example(fields)}, "
                f"got {shown(values)}."
            )
        yield number, values


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, _ in pairs if [key for key, _ in pairs].count(name) > 1)
        raise ValueError(f"the field '{twice}' is there twice, and one of them would be lost")
    return fields


def _csv(file: Path, fields: Sequence[str]) -> Iterator[Row]:
    header: list[str] | None = None
    for line, values in _csv_lines(file, _decoded(file)):
        if header is None:
            header = _header(file, line, values, fields)
        elif len(values) != len(header):
            raise ValueError(
                f"{file}, line {line}: expected {len(header)} columns ({', '.join(header)}), "
                f"got {len(values)}. Put a text that holds a comma or a line end in double quotes."
            )
        else:
            yield Row(file, line, dict(zip(header, values, strict=True)), is_text=True)


def _csv_lines(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the line on which it starts."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{file}, line {line}: expected comma-separated values, but {error}. Quotes in a text are "
                "doubled, and a very long text needs a .jsonl file."
            ) from error
        if values is None:
            return
        if len(values) > 1 or "".join(values).strip():
            yield line, values


def _header(file: Path, line: int, names: list[str], fields: Sequence[str]) -> list[str]:
    header = [name.strip() for name in names]
    for field in fields:
        if header.count(field) != 1:
            raise ValueError(
                f"{file}, line {line}: expected one column named '{field}', got {_listed(header)}. "
                "The first line names the columns, separated by commas."
            )
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{file}, line {line}: the column '{twice}' is there twice, and one of them would be lost. "
            "Rename or remove one."
        )
    return header


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _example(fields: Sequence[str]) -> str:
    return "{" + ", ".join(f'"{field}": ...' for field in fields) + "}"
