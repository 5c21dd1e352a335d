"""Draws all plots of a run, or of several in comparison, into one folder."""

from pathlib import Path

from lighter_freezers.reports.plots.groups import plot_gradient_norms
from lighter_freezers.reports.plots.layers import (
    plot_gradient_evolution,
    plot_layer_comparison,
    plot_layer_heatmap,
)
from lighter_freezers.reports.plots.losses import plot_training_loss
from lighter_freezers.reports.plots.report import generate_summary_report
from lighter_freezers.reports.plots.runs import Runs, runs_of

__all__ = ["plot_everything"]


def plot_everything(runs: Runs, folder: str | Path) -> list[Path]:
    """Draw every plot for which all runs have the file, and write the summary report.

    Args:
        runs: Folder of a run, or a list of folders, whose runs are drawn together.
        folder: Where the files go.

    Returns:
        The files written. Plots by layer are left out where a run has no `*.layer_norms.csv`, and the plot of
        losses where it has none.

    Raises:
        FileNotFoundError: A folder has no `*.group_norms.csv`.
        ValueError: A file is damaged, or nothing was measured yet.
    """
    found, target = runs_of(runs), Path(folder)
    written = [
        plot_gradient_norms(found, target / "gradient_norms.png"),
        plot_gradient_norms(found, target / "gradient_norms_log.png", log_scale=True),
    ]
    if all(run.has_layers() for run in found):
        written += [
            plot_layer_heatmap(found, target / "layer_heatmap.png"),
            plot_layer_comparison(found, target / "layer_comparison.png"),
            plot_layer_comparison(found, target / "layer_comparison_log.png", log_scale=True),
            plot_gradient_evolution(found, target / "gradient_evolution.png"),
            plot_gradient_evolution(found, target / "gradient_evolution_log.png", log_scale=True),
        ]
    if all(run.has_losses() for run in found):
        written.append(plot_training_loss(found, target / "training_loss.png"))
    summary = generate_summary_report(found, target)
    return [*written, summary.with_name("experiment_comparison.png"), summary]
