"""The files of one gradient-norm monitor: their columns, and the summaries made from them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lighter_freezers.reports.csv_rows import StepRows, free_name
from lighter_freezers.reports.gradients.norms import GradientNorms
from lighter_freezers.reports.whole_files import write_json

__all__ = ["NormFiles", "free_name", "local_folder"]

FIRST = ".group_norms.csv"  # the file that reserves a name for a run
LAYERS, LOSSES, TRANSITIONS = ".layer_norms.csv", ".losses.csv", ".transitions.csv"


class NormFiles:
    """The CSV and JSON files with a common name prefix.

    Args:
        folder: Their folder.
        name: The prefix; a name from `free_name(folder, ..., NormFiles.first)`.
        groups: The columns of the group norms, without `_norm`.
        layers: The columns of the layer norms; without any there is no such file.
    """

    first = FIRST

    def __init__(self, folder: Path, name: str, groups: Sequence[str], layers: Sequence[str]) -> None:
        self.folder, self.name = folder, name
        self._groups, self._layer_columns = tuple(groups), tuple(layers)
        self._norms = self._rows(FIRST, [*(f"{group}_norm" for group in groups), "total_norm"])
        self._layers = self._rows(LAYERS, layers) if layers else None
        self._losses = self._rows(LOSSES, ["train_loss", "val_loss"])
        self._transitions = self._rows(TRANSITIONS, ["frozen", "thawed", "holders", "notes"])

    def begin(self, source: Path | None = None, before_step: int = 0) -> None:
        """Start all files, with the rows of an earlier part of the run if there is one.

        Args:
            source: Folder and name prefix of that part's files. None for none.
            before_step: The step from which this run continues; rows from it on are dropped.
        """
        for rows in filter(None, (self._norms, self._layers, self._losses, self._transitions)):
            ending = rows.path.name.removeprefix(self.name)
            earlier = None if source is None else source.with_name(source.name + ending)
            # a loss or a change at the step of the checkpoint itself happened before it
            is_norm = rows in (self._norms, self._layers)
            rows.begin(earlier, before_step if is_norm else before_step + 1)

    def write_norms(self, step: int, norms: GradientNorms) -> None:
        """Append a row of group norms, and one of layer norms."""
        self._norms.append(step, [*(norms.groups[group] for group in self._groups), norms.total])
        if self._layers is not None:
            self._layers.append(step, [norms.layers[column] for column in self._layer_columns])

    def write_losses(self, step: int, train: float | None, val: float | None) -> None:
        """Append a row of losses, of which either may be missing."""
        self._losses.append(step, [train, val])

    def write_transition(
        self, step: int, frozen: str, thawed: str, holders: Iterable[str], notes: Iterable[str]
    ) -> None:
        """Append a row with what froze and thawed."""
        self._transitions.append(step, [frozen, thawed, "; ".join(holders), "; ".join(notes)])

    def write_summary(self) -> None:
        """Write `<name>.summary.json`: mean, std (of the population), max, min and peak_step."""
        columns = self._norms.columns()
        steps = columns["step"]
        summary = {group: _summary(steps, columns[f"{group}_norm"]) for group in (*self._groups, "total")}
        self._write_json("summary", summary)

    def write_json(self) -> None:
        """Write `<name>.gradient_norms.json`: the numbers of the CSV files, null for an empty cell."""
        columns = self._norms.columns()
        groups = (*self._groups, "total")
        content: dict[str, object] = {
            "steps": [int(step) for step in columns["step"]],
            "group_norms": {group: _numbers(columns[f"{group}_norm"]) for group in groups},
        }
        if self._layers is not None:
            layers: dict[str, dict[str, list[float | None]]] = {}
            for column, cells in self._layers.columns().items():
                layer, _, part = column.rpartition("_")
                if layer:  # the first column is the step
                    layers.setdefault(layer, {})[part] = _numbers(cells)
            content["layer_norms"] = layers
        self._write_json("gradient_norms", content)

    def _rows(self, ending: str, columns: Sequence[str]) -> StepRows:
        return StepRows(self.folder / f"{self.name}{ending}", ["step", *columns])

    def _write_json(self, kind: str, content: Mapping[str, object]) -> None:
        write_json(self.folder / f"{self.name}.{kind}.json", content)


def local_folder(folder: Path) -> Path:
    """The folder, if it is on this machine.

    Raises:
        ValueError: It is a URL, where rows cannot be appended to a file.
    """
    if ":/" in str(folder):
        raise ValueError(
            f"GradientNormMonitor writes row by row, which needs a local folder; the log folder is {folder}. "
            "Give dirpath."
        )
    return folder


def _numbers(cells: Iterable[str]) -> list[float | None]:
    """The finite numbers; infinity and NaN, which JSON lacks, become null."""
    values = [float(cell) if cell else None for cell in cells]
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _summary(steps: Sequence[str], cells: Sequence[str]) -> dict[str, float | int | None]:
    pairs = [(int(s), v) for s, v in zip(steps, _numbers(cells), strict=True) if v is not None]
    if not pairs:
        return dict.fromkeys(("mean", "std", "max", "min", "peak_step"))
    values = [value for _, value in pairs]
    peak = max(values)
    return {
        "mean": statistics.fmean(values),
        "std": statistics.pstdev(values),
        "max": peak,
        "min": min(values),
        "peak_step": next(step for step, value in pairs if value == peak),
    }
