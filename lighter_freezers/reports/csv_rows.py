"""CSV files of rows by optimizer step, written row by row, in line with a run that stops, resumes or repeats.

What the columns mean is the business of who writes them.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lighter_freezers._log import log

__all__ = ["StepRows", "free_name"]

Value = float | int | str | None


def free_name(folder: Path, name: str, ending: str) -> str:
    """A name of which the folder has no file yet: `name`, or `name-v1`, `name-v2` and so on.

    Its file `<name><ending>` is made at once, so that two runs that begin together get two names.
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
    """One file. A row is on its way to the disk before the next step begins.

    Args:
        path: Where it is.
        header: Its columns; the first is `step`.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path = path
        self.header = tuple(header)
        self._last: list[str] = []

    def begin(self, source: Path | None = None, before_step: int = 0) -> None:
        """Start the file with its header and the rows that an earlier part of the run has written.

        Args:
            source: The file with these rows: this one, or that of the run that goes on here. None for none.
            before_step: Rows from this step on are dropped, because this run writes them again.

        Raises:
            ValueError: The source has other columns.
        """
        rows = self._earlier_rows(source, before_step) if source is not None and source.exists() else []
        self._last = rows[-1] if rows else []
        beside = self.path.with_name(f"{self.path.name}.part")
        beside.write_text(_lines([self.header, *rows]))
        os.replace(beside, self.path)

    def append(self, step: int, values: Iterable[Value]) -> None:
        """Write one row, unless it is the last one once more; None becomes an empty cell."""
        row = [str(step), *(_text(value) for value in values)]
        if row == self._last:  # a resumed run comes by the same event
            return
        self._last = row
        with self.path.open("a") as file:
            file.write(_lines([row]))  # in one call, so that a killed process leaves no half of a row

    def columns(self) -> dict[str, list[str]]:
        """Everything written so far, by column."""
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))
        return {name: [row[index] for row in rows[1:]] for index, name in enumerate(rows[0])}

    def _earlier_rows(self, source: Path, before_step: int) -> list[list[str]]:
        text = source.read_text()
        rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))  # a torn last row is left out
        if not rows:
            return []
        if tuple(rows[0]) != self.header:
            raise ValueError(
                f"{source} has the columns {', '.join(rows[0][:6])}..., but this model gives "
                f"{', '.join(self.header[:6])}...: it is of another model, or of other settings. Give the "
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


def _lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _text(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
