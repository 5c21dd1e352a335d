"""Finds the CSV files of runs, labels the runs, and reads columns as numbers."""

import csv
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lighter_freezers.reports.whole_files import naming

__all__ = ["Mark", "Run", "Runs", "StepTable", "find_runs", "runs_of"]

GROUPS, LAYERS = ".group_norms.csv", ".layer_norms.csv"
LOSSES, TRANSITIONS = ".losses.csv", ".transitions.csv"
PHASE = re.compile(r"phase (\d+) of \d+: ([^)]+)\)")


@dataclass(frozen=True)
class StepTable:
    """Columns of numbers by optimizer step.

    Attributes:
        path: The file they were read from.
        steps: The first column.
        columns: The others; NaN stands for an empty cell.
    """

    path: Path
    steps: list[int]
    columns: dict[str, list[float]]


@dataclass(frozen=True)
class Mark:
    """A change of what trains.

    Attributes:
        step: The first optimizer step after it.
        text: What changed, briefly.
    """

    step: int
    text: str


@dataclass(frozen=True)
class Run:
    """The files of one run, of which all but the first may be missing.

    Attributes:
        path: Its `<name>.group_norms.csv`.
        label: Its name in legends.
    """

    path: Path
    label: str

    def groups(self) -> StepTable:
        """Norms by kind of layer: `embed_norm` and so on, `total_norm` last."""
        table = _read(self.path)
        if "total_norm" not in table.columns:
            raise ValueError(
                f"{self.path} has no column total_norm, but {', '.join(table.columns) or 'none'}. It is not "
                "a file of GradientNormMonitor, or it is damaged."
            )
        return table

    def layers(self) -> StepTable:
        """Norms by block: `layer_0_attention` and so on."""
        return _read(self._beside(LAYERS))

    def losses(self) -> StepTable:
        """`train_loss` and `val_loss`, of which each row has one or both."""
        return _read(self._beside(LOSSES))

    def marks(self) -> list[Mark]:
        """What froze and thawed after the first step; empty without a transitions file."""
        path = self._beside(TRANSITIONS)
        if not path.exists():
            return []
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [Mark(int(row["step"]), _text(row)) for row in rows if int(row["step"]) > 0]

    def has_layers(self) -> bool:
        """Whether norms were measured by block."""
        return self._beside(LAYERS).exists()

    def has_losses(self) -> bool:
        """Whether a loss was written."""
        return self._beside(LOSSES).exists() and bool(self.losses().steps)

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name.removesuffix(GROUPS) + ending)


Runs: TypeAlias = str | Path | Run | Sequence[str | Path | Run]


def runs_of(given: Runs) -> list[Run]:
    """The runs for the argument of a plot, checked."""
    several = [given] if isinstance(given, (str, Path, Run)) else list(given)
    ready = [run for run in several if isinstance(run, Run)]
    return (
        ready
        if len(ready) == len(several) and ready
        else find_runs(run.path if isinstance(run, Run) else run for run in several)
    )


def find_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Find the runs below folders.

    Args:
        paths: Folders of runs, or of folders of runs; or single `<name>.group_norms.csv` files.

    Returns:
        One run for each such file, named after the folders or the files in which their paths differ.

    Raises:
        FileNotFoundError: There is no such folder, or no such file in it.
    """
    files = list(dict.fromkeys(file for path in paths for file in _files(Path(path))))
    if not files:
        raise FileNotFoundError("No run was given: name at least one folder with *.group_norms.csv in it.")
    return [Run(file, label) for file, label in zip(files, _labels(files), strict=True)]


def _files(path: Path) -> list[Path]:
    if path.is_file() and path.name.endswith(GROUPS):
        return [path]
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}. Give the folder of a run, such as outputs/NAME/version_0."
        )
    found = sorted(path.rglob(f"*{GROUPS}"), key=_natural) if path.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"No *{GROUPS} in {path} or below it. GradientNormMonitor writes one into a run's log folder: "
            "add it to trainer.callbacks, or give the folder that is its dirpath."
        )
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key that puts version_2 before version_10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", str(path))]


def _labels(files: Sequence[Path]) -> list[str]:
    """The distinguishing part of each path, without common beginning and end."""
    names = [[*file.absolute().parent.parts, file.name.removesuffix(GROUPS)] for file in files]
    if len(names) == 1:
        return ["/".join(names[0][-3:-1])]
    start = len(os.path.commonprefix(names))
    end = len(os.path.commonprefix([name[::-1] for name in names]))
    return ["/".join(name[start : max(start + 1, len(name) - end)]) for name in names]


def _read(path: Path) -> StepTable:
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}: the run has not measured this.")
    with naming(path, "a file of GradientNormMonitor"):
        return _table(path)


def _table(path: Path) -> StepTable:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0][:1] != ["step"]:
        raise ValueError(f"{path} must begin with a header whose first column is step. Got {rows[:1]}.")
    complete = [row for row in rows[1:] if len(row) == len(rows[0])]  # a killed run may break off in a row
    steps = [int(row[0]) for row in complete]
    columns = {name: [_number(path, row[i]) for row in complete] for i, name in enumerate(rows[0]) if i}
    return StepTable(path, steps, columns)


def _number(path: Path, cell: str) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        raise ValueError(f"{path}: '{cell}' is not a number.") from None


def _text(row: dict[str, str]) -> str:
    phase = PHASE.search(row.get("holders") or "")
    if phase:
        return f"phase {phase[1]}: {phase[2]}"
    changes = [f"froze {row['frozen']}" if row.get("frozen") else ""]
    changes += [f"thawed {row['thawed']}" if row.get("thawed") else "", row.get("notes") or ""]
    return ", ".join(filter(None, changes))
