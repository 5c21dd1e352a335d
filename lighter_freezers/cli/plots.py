"""`lighter-freezers plots RUN_DIR...`: plots of gradient norms and losses, and a summary of them."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "Plot the files of GradientNormMonitor: one run by itself, several in comparison."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `plots`."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", help="folder of a run, or of several; or a *.group_norms.csv"
    )
    parser.add_argument(
        "--into",
        metavar="FOLDER",
        help="where the files go; left out: plots/ in the folder of the run, or in the one around all runs",
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw the plots, and print the path of each file."""
    from lighter_freezers.reports.plots import find_runs, plot_everything

    runs = find_runs(arguments.runs)
    folder = (
        Path(arguments.into) if arguments.into else _common([each.path.parent for each in runs]) / "plots"
    )
    for path in plot_everything(runs, folder):
        print(path)
    return 0


def _common(folders: Sequence[Path]) -> Path:
    common, here = Path(os.path.commonpath([folder.resolve() for folder in folders])), Path.cwd()
    return common.relative_to(here) if common.is_relative_to(here) else common
