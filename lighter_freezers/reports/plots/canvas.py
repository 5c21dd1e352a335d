"""Shared by all plots: figures without a display, a palette for colour-blind readers, marks."""

import bisect
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lighter_freezers._extras import require
from lighter_freezers.reports.plots.runs import Mark, Run, StepTable
from lighter_freezers.reports.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "NORM",
    "STEP",
    "colours_of",
    "explain_marks",
    "grid",
    "label_axes",
    "mark",
    "mark_among",
    "mean",
    "new_figure",
    "run_style",
    "save",
    "set_scale",
    "smoothed",
]

# Okabe and Ito's palette, "Color Universal Design" (2008): distinct for all common kinds of colour blindness.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GROUP_COLOURS = {
    "embed": GREEN,
    "attention": BLUE,
    "mlp": VERMILION,
    "lm_head": PURPLE,
    "total": BLACK,
}
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)
SPARE = ("#7F7F7F", "#882255")  # for a ninth and a tenth series, distinct from the others by lightness
DASHES = ("-", "--", "-.", ":")
MAX_MARK = 100  # characters
MARK = "#555555"
STEP, NORM = "optimizer step", "L2 norm of the gradient"  # the label of axes


def new_figure(width: float, height: float) -> "Figure":
    """A figure in inches that needs no display and is not registered with pyplot."""
    require("A plot", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: "Figure", path: str | Path) -> Path:
    """Write the image; its folder is created if needed."""
    target, drawn = Path(path).with_suffix(Path(path).suffix or ".png"), io.BytesIO()
    figure.savefig(drawn, dpi=130, format=target.suffix[1:])
    write_whole(target, drawn.getvalue())
    return target


def colours_of(groups: Sequence[str]) -> dict[str, str]:
    """The colours of groups of layers, no two the same; those of a GPT have one in all plots."""
    known = {group: GROUP_COLOURS[group] for group in groups if group in GROUP_COLOURS}
    free = [colour for colour in (*CYCLE, *SPARE) if colour not in known.values()]
    others = [group for group in groups if group not in known]
    return known | {group: free[index % len(free)] for index, group in enumerate(others)}


def run_style(index: int) -> dict[str, str]:
    """The colour and dashes of a run among several; no two of the first 32 are the same."""
    turn = index // len(CYCLE)
    return {"color": CYCLE[index % len(CYCLE)], "linestyle": DASHES[(index + turn) % len(DASHES)]}


def smoothed(table: StepTable, column: str, window: int, marks: Sequence[Mark]) -> list[float]:
    """The mean of the `window` values around each, not across marks.

    A gap stays a gap, and is not part of a mean.
    """
    values, half = table.columns[column], window // 2
    bounds = sorted(each.step for each in marks)
    stretches = [bisect.bisect_right(bounds, step) for step in table.steps]
    means = []
    for index, value in enumerate(values):
        around = range(max(0, index - half), min(len(values), index + half + 1))
        alike = [values[other] for other in around if stretches[other] == stretches[index]]
        means.append(mean(alike) if math.isfinite(value) else math.nan)
    return means


def mean(values: Iterable[float]) -> float:
    """The mean without NaN; NaN if nothing is left."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def mark(axes: "Axes", marks: Sequence[Mark], places: Sequence[float] = ()) -> None:
    """Draw a numbered line where something froze or thawed; `explain_marks` says what.

    Args:
        axes: The panel.
        marks: What changed.
        places: Where the lines stand on the axis of steps; none for the steps themselves.
    """
    for number, place in enumerate(places or [each.step for each in marks], 1):
        axes.axvline(place, color=MARK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
        axes.annotate(
            str(number),
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=MARK,
        )


def mark_among(axes: "Axes", marks: Sequence[Mark], index: int) -> None:
    """Draw lines in the colour of a run; the dashes of several runs at one step are offset."""
    for each in marks:
        dashes = (4 * index, (4, 12))
        axes.axvline(each.step, color=run_style(index)["color"], linewidth=0.9, linestyle=dashes, zorder=0.5)


def explain_marks(figure: "Figure", runs: Sequence[Run], limit: int = 8) -> None:
    """Explain the numbers of the marks below the panels, one line each."""
    title = "" if len(runs) == 1 else "{}: "
    lines = [
        f"{title.format(run.label)}{number}   step {each.step}: {_short(each.text)}"
        for run in runs
        for number, each in enumerate(run.marks(), 1)
    ]
    if len(lines) > limit:
        lines[limit:] = [f"... and {len(lines) - limit} more"]
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=MARK)


def _short(text: str) -> str:
    return text if len(text) <= MAX_MARK else f"{text[: MAX_MARK - 1]}…"


def set_scale(axes: "Axes", is_log: bool, values: Iterable[float]) -> None:
    """Set a logarithmic scale if requested and some value is above 0; else from 0 to the largest value."""
    finite = [value for value in values if math.isfinite(value)]
    if is_log and any(value > 0 for value in finite):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.05 * max(finite, default=1.0) or 1.0)


def label_axes(
    axes: "Axes", title: str, x: str, y: str, *, size: float = 10, pad: float | None = None
) -> None:
    """Write the title of a panel and the labels of its axes."""
    axes.set_title(title, fontsize=size, pad=pad)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def grid(axes: "Axes") -> None:
    """Draw faint grid lines behind the data."""
    axes.grid(True, color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
