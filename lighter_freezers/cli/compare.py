"""`lighter-freezers compare RUN_DIR...`: settings, figures and curves of several runs, side by side."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from lighter_freezers.cli.run_results import NORM, RunResults, differing, read_runs
from lighter_freezers.reports.columns import columns

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = (
    "Print and plot finished runs side by side: the settings that differ, losses, gradient norms, scores."
)
WIDEST = 36  # characters of a cell; runs differ at the end of a long setting
SCREEN = 110  # characters of a line, where cells can be cut to that
MOST_NORMS = 8  # gradient norms of layers; a ResNet has more than a screen shows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `compare`."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FOLDER",
        help="folder for the plots; default: comparison/ in the common folder of all runs",
    )
    parser.add_argument("--no-plots", action="store_true", help="print the tables only")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables, then plot the curves of the runs that have measured any."""
    runs = read_runs(arguments.runs)
    print(tables(runs))
    if not arguments.no_plots:
        common = Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))
        for path in _draw([run.folder for run in runs], arguments.into or common / "comparison"):
            print(path)
    return 0


def _draw(folders: Sequence[Path], into: Path) -> list[Path]:
    """Plot the losses of all runs in one figure, and their gradient norms in another."""
    measured = [folder for folder in folders if any(folder.glob("*.group_norms.csv"))]
    if not measured:
        print("\nNo plots: no run has *.group_norms.csv, which GradientNormMonitor writes.")
        return []
    from lighter_freezers.reports.plots import find_runs, plot_gradient_norms, plot_training_loss

    found = find_runs(measured)
    drawn = [plot_gradient_norms(found, into / "gradient_norms.png")]
    if all(run.has_losses() for run in found):
        drawn.append(plot_training_loss(found, into / "training_loss.png"))
    return drawn


def tables(runs: Sequence[RunResults]) -> str:
    """The settings that differ and all figures, a column for each run."""
    titles = [run.title for run in runs]
    changed = differing(runs)
    widest = min(WIDEST, max(12, (SCREEN - max(map(len, changed), default=0)) // len(runs) - 2))
    settings = [[name, *(_setting(run, name, widest) for run in runs)] for name in changed]
    names, num_more = _names_of_figures(runs)
    figures = [[name, *(_figure(run, name) for run in runs)] for name in names]
    parts = [_table("results", titles, figures)]
    if num_more:
        parts[0] += f"\nand {num_more} smaller gradient norms, in the *.summary.json of the runs"
    if settings:
        parts.insert(0, _table("settings that differ", titles, settings))
    return "\n\n".join(parts)


def _names_of_figures(runs: Sequence[RunResults]) -> tuple[list[str], int]:
    """The names of all figures, of many gradient norms the total and the largest; how many are left out."""
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    norms = [name for name in names if name.endswith(NORM) and name != f"total{NORM}"]
    norms.sort(key=lambda name: max(run.figures.get(name, 0.0) for run in runs), reverse=True)
    left_out = {*norms[MOST_NORMS:]}
    return [name for name in names if name not in left_out], len(left_out)


def _setting(run: RunResults, name: str, widest: int) -> str:
    text = str(run.settings[name]) if name in run.settings else "-"
    return text if len(text) <= widest else f"...{text[3 - widest :]}"


def _figure(run: RunResults, name: str) -> str:
    value = run.figures.get(name)
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def _table(name: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        columns([[name, *titles], ["-" * len(name), *("-" * len(title) for title in titles)], *rows])
    )
