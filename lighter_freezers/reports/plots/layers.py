"""Plots of gradient norms by block: a heatmap over the steps, means, and profiles over the depth."""

import bisect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lighter_freezers.reports.plots import canvas
from lighter_freezers.reports.plots.runs import Mark, Runs, StepTable, runs_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

__all__ = ["plot_gradient_evolution", "plot_layer_comparison", "plot_layer_heatmap"]

COLUMN = re.compile(r"layer_(\d+)_(\w+)")
LAYER = "layer"
NOTHING = "#D0D0D0"
NUM_PROFILES = 7


def plot_layer_heatmap(runs: Runs, path: str | Path = "layer_heatmap.png") -> Path:
    """Plot layers by steps, coloured by norm, attention next to MLP and runs below each other.

    The colours are logarithmic, and the same for all runs. Grey is where a layer had no gradient.

    Args:
        runs: Folder of a run, or a list of folders.
        path: The PNG file to write.

    Returns:
        The path.

    Raises:
        FileNotFoundError: A folder has no `*.layer_norms.csv`.
        ValueError: A file is damaged, or no run has a row.
    """
    from matplotlib.colors import LogNorm

    found = runs_of(runs)
    grids = [_by_kind(run.layers()) for run in found]
    positive = [v for kinds in grids for rows in kinds.values() for row in rows for v in row if v > 0]
    finite = [value for value in positive if math.isfinite(value)]
    if not finite:
        raise ValueError(f"{found[0].path.parent} has no layer norm above zero to draw.")
    colours = LogNorm(max(min(finite), max(finite) * 1e-4), max(finite))
    kinds = list(dict.fromkeys(kind for each in grids for kind in each))
    num_layers = max(len(rows) for each in grids for rows in each.values())
    figure = canvas.new_figure(5.2 * len(kinds) + 1, len(found) * max(2.6, 0.13 * num_layers + 0.8) + 0.8)
    panels = figure.subplots(len(found), len(kinds), squeeze=False, sharex=True, sharey=True)
    for run, each, row in zip(found, grids, panels, strict=True):
        steps, marks = run.layers().steps, run.marks()
        for kind, axes in zip(kinds, row, strict=True):
            title = kind if len(found) == 1 else f"{run.label}: {kind}"
            _heat(axes, steps, each.get(kind, []), colours, title)
            _mark_heat(axes, steps, marks)
    bar = figure.colorbar(panels[0][0].collections[0], ax=panels, aspect=18 * len(found))
    bar.set_label(f"{canvas.NORM} (grey: none)")
    canvas.explain_marks(figure, found)
    if len(found) == 1:
        figure.suptitle(f"Gradient norms by layer of {found[0].label}", fontsize=11)
    return canvas.save(figure, path)


def plot_layer_comparison(
    runs: Runs, path: str | Path = "layer_comparison.png", *, log_scale: bool = False
) -> Path:
    """Plot the mean norm of each layer over all measurements in which it had a gradient.

    One run gets bars, attention next to MLP; several get a line each, in a panel for each kind.

    Args:
        runs: Folder of a run, or a list of folders.
        path: The PNG file to write.
        log_scale: A logarithmic axis of norms.

    Returns:
        The path.

    Raises:
        FileNotFoundError: A folder has no `*.layer_norms.csv`.
        ValueError: A file is damaged.
    """
    found = runs_of(runs)
    means = [{k: list(map(canvas.mean, rows)) for k, rows in _by_kind(run.layers()).items()} for run in found]
    kinds = list(dict.fromkeys(kind for each in means for kind in each))
    num_layers = max(len(values) for each in means for values in each.values())
    if len(found) == 1:
        figure = canvas.new_figure(max(6.0, 0.4 * num_layers + 2), 4.2)
        axes = figure.subplots()
        width = 0.8 / len(kinds)
        colours = canvas.colours_of(kinds)
        for index, kind in enumerate(kinds):
            places = [layer + (index - (len(kinds) - 1) / 2) * width for layer in range(len(means[0][kind]))]
            axes.bar(places, means[0][kind], width, color=colours[kind], label=kind)
        _finish(axes, f"Mean gradient norm by layer of {found[0].label}", num_layers, means, log_scale)
        axes.legend(fontsize=8)
        return canvas.save(figure, path)
    figure = canvas.new_figure(max(5.0, 0.28 * num_layers + 2) * len(kinds), 4.4)
    panels = figure.subplots(1, len(kinds), squeeze=False, sharex=True, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for index, (run, each) in enumerate(zip(found, means, strict=True)):
            style = canvas.run_style(index)
            axes.plot(each.get(kind, []), marker="osD^v<>P"[index % 8], label=run.label, **style)
        _finish(axes, f"Mean gradient norm by layer: {kind}", num_layers, means, log_scale)
        axes.label_outer(remove_inner_ticks=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(found)), fontsize=8)
    return canvas.save(figure, path)


def plot_gradient_evolution(
    runs: Runs, path: str | Path = "gradient_evolution.png", *, log_scale: bool = False
) -> Path:
    """Plot the norm over the depth of the model at seven steps from the first to the last, light to dark.

    Args:
        runs: Folder of a run, or a list of folders.
        path: The PNG file to write.
        log_scale: A logarithmic axis of norms.

    Returns:
        The path.

    Raises:
        FileNotFoundError: A folder has no `*.layer_norms.csv`.
        ValueError: A file is damaged, or a run has no row.
    """
    from matplotlib import colormaps

    found = runs_of(runs)
    tables = [run.layers() for run in found]
    grids = [_by_kind(table) for table in tables]
    kinds = list(dict.fromkeys(kind for each in grids for kind in each))
    figure = canvas.new_figure(5.2 * len(kinds) + 1, 3.4 * len(found) + 0.6)
    panels = figure.subplots(len(found), len(kinds), squeeze=False, sharex=True, sharey=True)
    shown = [
        {
            column: [values[index] for index in _evenly(len(values))]
            for column, values in table.columns.items()
        }
        for table in tables
    ]
    for run, table, each, row in zip(found, tables, grids, panels, strict=True):
        chosen = _evenly(len(table.steps))
        if not chosen:
            raise ValueError(f"{table.path} has no rows yet. Draw it once the run has measured something.")
        for kind, axes in zip(kinds, row, strict=True):
            rows = each.get(kind, [])
            for order, index in enumerate(chosen):
                colour = colormaps["viridis_r"](0.05 + 0.95 * order / max(1, len(chosen) - 1))
                profile = [values[index] for values in rows]
                axes.plot(profile, color=colour, marker=".", label=f"step {table.steps[index]}")
            title = kind if len(found) == 1 else f"{run.label}: {kind}"
            _finish(axes, title, len(rows), shown, log_scale)
            axes.label_outer(remove_inner_ticks=True)
        row[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    if len(found) == 1:
        figure.suptitle(f"Gradient norms over the depth of {found[0].label}", fontsize=11)
    return canvas.save(figure, path)


def _by_kind(table: StepTable) -> dict[str, list[list[float]]]:
    """Kind of layer -> for each layer its values over the steps."""
    found: dict[str, list[list[float]]] = {}
    for column, values in table.columns.items():
        match = COLUMN.fullmatch(column)
        if match is None:
            raise ValueError(
                f"{table.path}: column '{column}' is not layer_N_KIND. The file is from another program."
            )
        found.setdefault(match[2], []).append(values)
    return found


def _heat(
    axes: "Axes", steps: Sequence[int], rows: Sequence[Sequence[float]], colours: "Normalize", title: str
) -> None:
    import numpy as np

    values = np.array(rows, dtype=float).reshape(len(rows), len(steps))  # NaN is left out
    axes.set_facecolor(NOTHING)
    edges = list(_edges(steps))
    axes.pcolormesh(edges, np.arange(len(rows) + 1) - 0.5, values, cmap="cividis", norm=colours)
    canvas.label_axes(axes, title, canvas.STEP, LAYER, pad=14)
    axes.set_yticks(_layer_ticks(len(rows)))


def _edges(steps: Sequence[int]) -> Iterator[float]:
    """Cell edges halfway between steps; the first and the last cell are as wide as their neighbours."""
    if len(steps) < 2:
        yield from (steps[0] - 0.5, steps[0] + 0.5) if steps else ()
        return
    middles = [(one + other) / 2 for one, other in zip(steps, steps[1:], strict=False)]
    yield from (2 * steps[0] - middles[0], *middles, 2 * steps[-1] - middles[-1])


def _mark_heat(axes: "Axes", steps: Sequence[int], marks: Sequence[Mark]) -> None:
    """Mark changes at the edge of the first cell that was measured after them."""
    edges = list(_edges(steps))
    places = [edges[bisect.bisect_left(steps, each.step)] if edges else each.step for each in marks]
    canvas.mark(axes, marks, places)
    for line in axes.lines:
        line.set(color="#FFFFFF", linewidth=1.4, zorder=3)


def _finish(
    axes: "Axes", title: str, num_layers: int, shown: Iterable[Mapping[str, Sequence[float]]], log_scale: bool
) -> None:
    nested = [values for each in shown for values in each.values()]
    canvas.set_scale(axes, log_scale, (v for values in nested for v in values))
    canvas.label_axes(axes, title, LAYER, canvas.NORM)
    axes.set_xticks(_layer_ticks(num_layers))
    canvas.grid(axes)


def _layer_ticks(num_layers: int) -> list[int]:
    return list(range(0, num_layers, max(1, math.ceil(num_layers / 24))))


def _evenly(number: int) -> list[int]:
    """Up to seven indices from the first to the last."""
    count = min(NUM_PROFILES, number)
    return [round(index * (number - 1) / max(1, count - 1)) for index in range(count)]
