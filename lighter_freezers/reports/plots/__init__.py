"""Plots and a report of a run's gradient norms and losses. Reads CSV files, and nothing else."""

from lighter_freezers.reports.plots.everything import plot_everything
from lighter_freezers.reports.plots.groups import plot_gradient_norms
from lighter_freezers.reports.plots.layers import (
    plot_gradient_evolution,
    plot_layer_comparison,
    plot_layer_heatmap,
)
from lighter_freezers.reports.plots.losses import plot_training_loss
from lighter_freezers.reports.plots.report import generate_summary_report
from lighter_freezers.reports.plots.runs import find_runs

__all__ = [
    "find_runs",
    "generate_summary_report",
    "plot_everything",
    "plot_gradient_evolution",
    "plot_gradient_norms",
    "plot_layer_comparison",
    "plot_layer_heatmap",
    "plot_training_loss",
]
