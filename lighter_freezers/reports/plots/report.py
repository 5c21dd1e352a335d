"""Statistics of gradient norms, of each run and of runs in comparison, as JSON and as a plot."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from lighter_freezers.reports.plots.canvas import colours_of, grid, new_figure, save
from lighter_freezers.reports.plots.groups import largest
from lighter_freezers.reports.plots.runs import Run, Runs, runs_of
from lighter_freezers.reports.whole_files import write_json

__all__ = ["generate_summary_report"]

ERROR = "#777777"
Statistics = dict[str, float | int | None]


def generate_summary_report(runs: Runs, folder: str | Path = ".") -> Path:
    """Write `experiment_summary.json`, and draw the mean norms of all runs in `experiment_comparison.png`.

    Args:
        runs: Folder of a run, or a list of folders.
        folder: Where both files go.

    Returns:
        The path of the JSON file: `experiments` has for each run and group mean, std, max, min and peak_step;
        `comparison` has for each run attention_mean, mlp_mean and attention_to_mlp_ratio. null where nothing
        was measured. The standard deviation is that of the population, not of a sample.

    Raises:
        FileNotFoundError: A folder has no `*.group_norms.csv`.
        ValueError: A file is damaged.
    """
    found = runs_of(runs)
    experiments = {run.label: _statistics(run) for run in found}
    comparison = {label: _compared(groups) for label, groups in experiments.items()}
    target = Path(folder)
    path = target / "experiment_summary.json"
    write_json(path, {"experiments": experiments, "comparison": comparison})
    _draw(found, experiments, target / "experiment_comparison.png")
    return path


def _statistics(run: Run) -> dict[str, Statistics]:
    table = run.groups()
    return {
        column.removesuffix("_norm"): _of(table.steps, values) for column, values in table.columns.items()
    }


def _of(steps: Sequence[int], values: Sequence[float]) -> Statistics:
    pairs = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if not pairs:
        return dict.fromkeys(("mean", "std", "max", "min", "peak_step"))
    numbers = [value for _, value in pairs]
    peak_step, peak = max(pairs, key=lambda pair: pair[1])
    mean, std = statistics.fmean(numbers), statistics.pstdev(numbers)
    return {"mean": mean, "std": std, "max": peak, "min": min(numbers), "peak_step": peak_step}


def _compared(groups: Mapping[str, Statistics]) -> dict[str, float | None]:
    attention, mlp = (groups.get(group, {}).get("mean") for group in ("attention", "mlp"))
    ratio = attention / mlp if attention is not None and mlp else None
    return {"attention_mean": attention, "mlp_mean": mlp, "attention_to_mlp_ratio": ratio}


def _draw(runs: Sequence[Run], experiments: Mapping[str, Mapping[str, Statistics]], path: Path) -> Path:
    names = dict.fromkeys(group for run in runs for group in largest(run.groups()))
    groups = [*names, "total"]
    figure = new_figure(max(7.0, 0.32 * len(runs) * len(groups) + 2), 4.4)
    axes = figure.subplots()
    width, colours = 0.8 / len(groups), colours_of(groups)
    for index, group in enumerate(groups):
        means = [experiments[run.label].get(group, {}).get("mean") for run in runs]
        stds = [experiments[run.label].get(group, {}).get("std") for run in runs]
        places = [number + (index - (len(groups) - 1) / 2) * width for number in range(len(runs))]
        heights = [math.nan if mean is None else float(mean) for mean in means]
        bars = [math.nan if std is None else float(std) for std in stds]
        axes.bar(
            places,
            heights,
            width,
            yerr=bars,
            color=colours[group],
            label=group,
            ecolor=ERROR,
            capsize=2,
        )
    axes.set_xticks(range(len(runs)), [run.label for run in runs])
    axes.set_ylabel("mean L2 norm of the gradient (bar: std over the steps)")
    axes.set_title("Gradient norms by run", fontsize=11)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, ncols=3)
    grid(axes)
    return save(figure, path)
