"""CSV files with one row per optimizer step, appended during a run, correct after stops and resumes.

The caller decides what the columns mean.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from lighter_freezers._log import log
from lighter_freezers.reports.whole_files import write_whole

__all__ = ["StepRows", "free_name"]

Value = float | int | str | None


def free_name(folder: Path, name: str, ending: str) -> str:
    """Reserve a name that has no file in the folder yet: `name`, or `name-v1`, `name-v2` and so on.

    Its file `<name><ending>` is created at once, so that two runs that start together get two names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        candidate = f"{name}-v{number}" if number else name
        try:
            (folder / f"{candidate}{ending}").open("x").close()
        except FileExistsError:
            number += 1
            continue
        return candidate


class StepRows:
    """One file. A row is handed to the operating system before the next step starts.

    Args:
        path: The path of the file.
        header: Its columns; the first is `step`.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path = path
        self.header = tuple(header)
        self._last: list[str] = []

    def begin(self, source: Path | None = None, before_step: int = 0) -> None:
        """Start the file with its header and the rows from an earlier part of the run.

        Args:
            source: The file with these rows: this one, or that of the run that is resumed. None for none.
            before_step: Rows from this step on are dropped, because this run writes them again.

        Raises:
            ValueError: The source has other columns.
        """
        rows = self._earlier_rows(source, before_step) if source is not None and source.exists() else []
        self._last = rows[-1] if rows else []
        write_whole(self.path, _lines([self.header, *rows]))

    def append(self, step: int, values: Iterable[Value]) -> None:
        """Append one row, unless its step is already the last; None becomes an empty cell."""
        row = [str(step), *(_text(value) for value in values)]
        if row == self._last:  # a resumed run repeats this event
            return
        self._last = row
        with self.path.open("a") as file:
            file.write(_lines([row]))  # in one call, so that a killed process leaves no half of a row

    def columns(self) -> dict[str, list[str]]:
        """Everything written so far, by column."""
        rows = _whole_rows(self.path)
        return {name: [row[index] for row in rows[1:]] for index, name in enumerate(rows[0])}

    def _earlier_rows(self, source: Path, before_step: int) -> list[list[str]]:
        if not source.stat().st_size:
            return []
        rows = _whole_rows(source)
        if tuple(rows[0]) != self.header:
            raise ValueError(
                f"{source} has the columns {', '.join(rows[0][:6])}..., but this model gives "
                f"{', '.join(self.header[:6])}...: it belongs to another model or other settings. Give the "
                "monitor another name or dirpath."
            )
        kept = [row for row in rows[1:] if int(row[0]) < before_step]
        if len(kept) < len(rows) - 1:
            log.info(
                "%s: %d rows from step %d on are written again",
                source,
                len(rows) - 1 - len(kept),
                before_step,
            )
        return kept


def _whole_rows(path: Path) -> list[list[str]]:
    """The header and all rows; an incomplete last one is skipped.

    Raises:
        ValueError: The file is damaged; the message names it.
    """
    try:
        text = path.read_text()
        header, *rows = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header) or not row[0].isdecimal():
                raise ValueError(f"line {number} is no row of a step")
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged: {error}. Move it away, or give the monitor another name."
        ) from error
    return [header, *rows]


def _lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _text(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
