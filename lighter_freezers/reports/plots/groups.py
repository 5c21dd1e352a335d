"""The plot of gradient norms by kind of layer, over the steps of one run or several."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lighter_freezers.reports.plots import canvas
from lighter_freezers.reports.plots.runs import Run, Runs, StepTable, runs_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_gradient_norms"]

MAX_LINES = 8  # of a model with many components, those with the largest norms
FEW = 20


def plot_gradient_norms(
    runs: Runs, path: str | Path = "gradient_norms.png", *, log_scale: bool = False, window: int = 1
) -> Path:
    """Plot the norms of each kind of layer over the steps, as measured.

    One run gets a panel for the kinds of layers and one for the total, several get a panel for each kind.
    Dashed lines mark where something froze or thawed. A line has a gap where nothing had a gradient.

    Args:
        runs: Folder of a run, or a list of folders.
        path: The PNG file to write.
        log_scale: A logarithmic axis of norms.
        window: Measurements in a moving average, drawn in bold over what was measured; 1 for none.

    Returns:
        The path.

    Raises:
        FileNotFoundError: A folder has no `*.group_norms.csv`.
        ValueError: A file is damaged, or no run has a row.
    """
    found = runs_of(runs)
    tables = [run.groups() for run in found]
    if not any(table.steps for table in tables):
        raise ValueError(f"{found[0].path} has no rows yet. Draw it once the run has measured something.")
    if len(found) > 1:
        return _compare(found, tables, path, log_scale, window)
    return _draw_one(found[0], tables[0], path, log_scale, window)


def _draw_one(run: Run, table: StepTable, path: str | Path, log_scale: bool, window: int) -> Path:
    figure = canvas.new_figure(11, 4.6)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    groups = largest(table)
    marks, colours = run.marks(), canvas.colours_of([*groups, "total"])
    for group in groups:
        bold = canvas.smoothed(table, f"{group}_norm", window, marks)
        _line(left, table, group, bold, color=colours[group], label=group)
    bold = canvas.smoothed(table, "total_norm", window, marks)
    _line(right, table, "total", bold, color=colours["total"], label="total")
    num_all = sum(any(map(math.isfinite, column)) for column in table.columns.values()) - 1
    titles = (
        "by kind of layer" if num_all <= len(groups) else f"the {len(groups)} largest of {num_all}",
        "total",
    )
    values = [value for name in (*groups, "total") for value in table.columns[f"{name}_norm"]]
    for axes, title in ((left, titles[0]), (right, titles[1])):
        _finish(axes, title, values, log_scale)
        canvas.mark(axes, marks)
    left.legend(fontsize=8)
    figure.suptitle(f"Gradient norms of {run.label}", fontsize=11)
    canvas.explain_marks(figure, [run])
    return canvas.save(figure, path)


def _compare(
    runs: Sequence[Run], tables: Sequence[StepTable], path: str | Path, log_scale: bool, window: int
) -> Path:
    names = dict.fromkeys(group for table in tables for group in largest(table))
    groups = [*list(names)[:MAX_LINES], "total"]
    num_columns = 2 if len(groups) <= 4 else 3
    num_rows = math.ceil(len(groups) / num_columns)
    figure = canvas.new_figure(4.6 * num_columns, 3.2 * num_rows + 0.5)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True).flatten()
    values = [
        value for table in tables for group in groups for value in table.columns.get(f"{group}_norm", [])
    ]
    for axes, group in zip(panels, groups, strict=False):
        shown = [table for table in tables if f"{group}_norm" in table.columns]
        for index, (run, table) in enumerate(zip(runs, tables, strict=True)):
            if table in shown:
                bold = canvas.smoothed(table, f"{group}_norm", window, run.marks())
                _line(axes, table, group, bold, **canvas.run_style(index), label=run.label)
                canvas.mark_among(axes, run.marks(), index)
        _finish(axes, group, values, log_scale, 6)
    for axes in panels[len(groups) :]:
        axes.remove()
    handles, labels = panels[len(groups) - 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(runs)), fontsize=8)
    if any(run.marks() for run in runs):
        figure.supxlabel(
            "dashes from top to bottom: something froze or thawed in the run of that colour", fontsize=8
        )
    return canvas.save(figure, path)


def _line(
    axes: "Axes",
    table: StepTable,
    group: str,
    bold: Sequence[float],
    *,
    color: str,
    label: str,
    linestyle: str = "-",
) -> None:
    values = table.columns[f"{group}_norm"]
    marker = "." if len(values) < FEW else None  # a single value between two gaps would draw no line
    if bold != values:
        axes.plot(table.steps, values, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(table.steps, bold, color=color, linewidth=1.6, linestyle=linestyle, label=label, marker=marker)


def _finish(axes: "Axes", title: str, values: Sequence[float], log_scale: bool, pad: float = 14) -> None:
    canvas.set_scale(axes, log_scale, values)
    canvas.label_axes(axes, title, canvas.STEP, canvas.NORM, pad=pad)
    axes.tick_params(labelbottom=True, labelleft=True)  # below a panel there may be none
    canvas.grid(axes)


def largest(table: StepTable) -> list[str]:
    """At most eight groups that have a number, in file order: the head, and those with the largest mean."""
    averages = {column.removesuffix("_norm"): canvas.mean(values) for column, values in table.columns.items()}
    means = {group: value for group, value in averages.items() if group != "total" and math.isfinite(value)}
    head = list(means)[-1:]  # the last in model order
    chosen = sorted(means, key=lambda group: (group not in head, -means[group]))[:MAX_LINES]
    return [group for group in means if group in chosen]
