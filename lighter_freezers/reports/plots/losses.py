"""The plot of training and validation loss over the steps of one run or several."""

import math
from pathlib import Path

from lighter_freezers.reports.plots import canvas
from lighter_freezers.reports.plots.runs import Run, Runs, StepTable, runs_of

__all__ = ["plot_training_loss"]

KINDS = {"train_loss": "training loss", "val_loss": "validation loss"}


def plot_training_loss(runs: Runs, path: str | Path = "training_loss.png") -> Path:
    """Plot the losses over the steps; the lowest value of each is marked.

    Args:
        runs: Folder of a run, or a list of folders. Several runs get a panel for each loss.
        path: The PNG file to write.

    Returns:
        The path.

    Raises:
        FileNotFoundError: A folder has no `*.losses.csv`.
        ValueError: No loss was written.
    """
    found = runs_of(runs)
    tables = [run.losses() for run in found]
    kinds = [kind for kind in KINDS if any(_points(table, kind) for table in tables)]
    if not kinds:
        raise ValueError(f"{tables[0].path} has no loss: training_step returned none, and none was logged.")
    return (
        _draw_one(found[0], tables[0], kinds, path)
        if len(found) == 1
        else _compare(found, tables, kinds, path)
    )


def _draw_one(run: Run, table: StepTable, kinds: list[str], path: str | Path) -> Path:
    figure = canvas.new_figure(8, 4.6)
    axes = figure.subplots()
    for kind, colour in zip(kinds, (canvas.BLUE, canvas.VERMILION), strict=False):
        points = _points(table, kind)
        step, least = min(points, key=lambda point: point[1])
        label = f"{KINDS[kind]}, least {least:.4g} at step {step}"
        marker = "o" if kind == "val_loss" else None
        axes.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=4)
        axes.plot(step, least, marker="*", color=colour, markersize=13, markeredgecolor="white")
    axes.legend(fontsize=8)
    canvas.label_axes(axes, f"Losses of {run.label}", canvas.STEP, "loss", size=11, pad=14)
    canvas.grid(axes)
    canvas.mark(axes, run.marks())
    canvas.explain_marks(figure, [run])
    return canvas.save(figure, path)


def _compare(runs: list[Run], tables: list[StepTable], kinds: list[str], path: str | Path) -> Path:
    figure = canvas.new_figure(5.6 * len(kinds), 4.6)
    panels = figure.subplots(1, len(kinds), squeeze=False, sharex=True, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for index, (run, table) in enumerate(zip(runs, tables, strict=True)):
            points = _points(table, kind)
            if points:
                label = f"{run.label}, least {min(value for _, value in points):.4g}"
                axes.plot(*zip(*points, strict=True), label=label, **canvas.run_style(index))
                canvas.mark_among(axes, run.marks(), index)
        canvas.label_axes(axes, KINDS[kind], canvas.STEP, "loss")
        axes.legend(fontsize=8)
        canvas.grid(axes)
    return canvas.save(figure, path)


def _points(table: StepTable, kind: str) -> list[tuple[int, float]]:
    values = table.columns.get(kind, [])
    return [(step, value) for step, value in zip(table.steps, values, strict=False) if math.isfinite(value)]
