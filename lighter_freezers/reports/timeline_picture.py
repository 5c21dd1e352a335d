"""Draws a timeline: layers by steps, coloured by state, and the loss below them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from lighter_freezers.engine.trainer_like import LoggerLike
from lighter_freezers.reports.loggers import tensorboards, write_image
from lighter_freezers.reports.loss_history import Points
from lighter_freezers.reports.rank_history import draw_ranks
from lighter_freezers.reports.timeline import Timeline, rows_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["COLOURS", "draw_timeline", "write_timeline"]

# Distinct for every kind of colour vision, and by lightness in print; "partial" is striped in the first two.
COLOURS = {"frozen": "#2F6DAA", "trainable": "#F0A818", "LoRA only": "#CC79A7", "user-frozen": "#CFCFCF"}
_STATES = ("frozen", "trainable", "LoRA only", "partial", "user-frozen")
_LOSS_COLOURS = ("#222222", "#D55E00")
_INK, _FAINT = "#222222", "#8A8A8A"


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels."""

    plot: int = 1200  # width of the part with an axis
    names: int = 420  # the most that names may take
    margin: int = 30
    right: int = 100  # for the scale of the loss
    top: int = 110  # legend and changes
    bottom: int = 100
    loss: int = 240
    text: int = 22
    rank: int = 18
    rows: int = 1800  # the height of all of them
    tallest: int = 36


# A card of TensorBoard shows 430 by 215 pixels, and takes every second pixel of a picture twice as large:
# it is blurred by as much, or edges of letters would be left out.
_FULL = _Layout()
_CARD = _Layout(
    plot=590,
    names=180,
    margin=14,
    right=70,
    top=70,
    bottom=36,
    loss=104,
    text=24,
    rank=16,
    rows=220,
    tallest=44,
)
_SLIM_CARD = replace(_CARD, loss=0, rows=324, tallest=60)


def write_timeline(loggers: Sequence[LoggerLike], key: str, timeline: Timeline, last_step: int) -> None:
    """Draw it for all loggers: for TensorBoard in the size of a card, for the others in full."""
    cards = tensorboards(loggers)
    if cards:
        write_image(cards, key, draw_timeline(timeline, last_step, is_card=True), last_step)
    others = [logger for logger in loggers if logger not in cards]
    if others:
        write_image(others, key, draw_timeline(timeline, last_step), last_step)


def draw_timeline(timeline: Timeline, last_step: int, *, is_card: bool = False) -> "Image":
    """Draw layers by steps, with the LoRA ranks and, if a run has one, the loss.

    Args:
        timeline: What to draw, with at least one event.
        last_step: Optimizer steps done so far: the right end of the axis.
        is_card: Draw it small, for a card of TensorBoard, with text that is legible there.
    """
    from PIL import Image, ImageDraw, ImageFilter

    rows = rows_of(timeline.components)
    curves = {key: points for key, points in timeline.losses.curves.items() if len(points) > 1}
    layout = _FULL if not is_card else _CARD if curves else _SLIM_CARD
    height = max(2, min(layout.tallest, layout.rows // len(rows)))
    names = [_cut(name, layout) for name in [*rows, *curves]]
    left = layout.margin + int(max(_font(layout.text).getlength(name) for name in [*names, "changes"])) + 12
    below = layout.top + height * len(rows)
    bottom = below + (layout.loss if curves else 0)
    image = Image.new("RGB", (left + layout.plot + layout.right, bottom + layout.bottom), "white")
    axis = _Axis(
        ImageDraw.Draw(image), layout, left, timeline.steps[0], max(last_step, timeline.steps[0] + 1)
    )
    seen = set[str]()
    for index, members in enumerate(rows.values()):
        top = layout.top + index * height
        seen |= _draw_row(image, axis, timeline.spans(members, last_step), top, height)
        marks = [(axis.x(step), text) for step, text in timeline.ranks.marks(members)]
        draw_ranks(axis.canvas, marks, top, height, _font(max(8, min(layout.rank, height - 6))))
    _draw_names(axis, names[: len(rows)], height)
    _draw_legend(image, axis, [state for state in _STATES if state in seen])
    changes = sorted({*timeline.steps, *timeline.ranks.steps} - {axis.first})
    _draw_changes(axis, changes)
    if curves:
        _draw_losses(axis, curves, changes, below, bottom)
    _draw_axis(axis, bottom)
    return image.filter(ImageFilter.BoxBlur(0.5)) if is_card else image


@dataclass(frozen=True)
class _Axis:
    """Where the steps are, and what to draw on."""

    canvas: "ImageDraw"
    layout: _Layout
    left: int
    first: int
    last: int

    def x(self, step: float) -> float:
        """Pixels from the left."""
        return self.left + (step - self.first) * self.layout.plot / (self.last - self.first)

    def text(self, place: tuple[float, float], text: str, anchor: str, colour: str = _INK) -> None:
        """Write in the size of this picture."""
        self.canvas.text(place, text, fill=colour, font=_font(self.layout.text), anchor=anchor)


@lru_cache(maxsize=8)
def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _cut(name: str, layout: _Layout) -> str:
    """A name that fits: its end, which tells layers apart."""
    while len(name) > 1 and _font(layout.text).getlength(name) > layout.names:
        name = f"…{name.lstrip('…')[1:]}"
    return name


def _draw_row(
    image: "Image", axis: _Axis, spans: Iterable[tuple[int, int, str]], top: int, height: int
) -> set[str]:
    """Draw the states of one row; a short one gets a pixel. Returns the states."""
    seen, columns = set[str](), dict[int, tuple[int, str]]()
    for start, end, state in spans:
        seen.add(state)
        left = round(axis.x(start))
        columns[left] = (max(round(axis.x(end)), left + 1), state)  # of several in one pixel, the last
    for left, (right, state) in columns.items():
        _fill(image, (left, top, right, top + height - (2 if height > 8 else 0)), state)
    return seen


def _fill(image: "Image", box: tuple[int, int, int, int], state: str) -> None:
    """Colour a box; stripes of "frozen" and "trainable" where some of it trains."""
    from PIL import Image, ImageDraw

    if state in COLOURS:
        image.paste(COLOURS[state], box)
        return
    width, height = box[2] - box[0], box[3] - box[1]
    tile = Image.new("RGB", (max(width, 1), height), COLOURS["frozen"])
    stripes = ImageDraw.Draw(tile)
    for x in range(-height, width, 16):
        stripes.line((x, height, x + height, 0), fill=COLOURS["trainable"], width=6)
    image.paste(tile, box[:2])


def _draw_names(axis: _Axis, names: Sequence[str], height: int) -> None:
    """Write the rows' names to their left; where rows are thin, every second, third, ... and the last."""
    stride = -(-axis.layout.text // height)
    shown = [index for index in range(0, len(names), stride) if len(names) - 1 - index >= stride]
    for index in [*shown, len(names) - 1]:
        middle = axis.layout.top + (index + 0.5) * height - 1
        axis.text((axis.left - 12, middle), names[index], "rm")


def _draw_legend(image: "Image", axis: _Axis, states: Sequence[str]) -> None:
    size, x = axis.layout.text, axis.left if axis.layout is _FULL else axis.layout.margin
    for state in states:
        _fill(image, (x, 8, x + size, 8 + size), state)
        axis.text((x + size + 8, 8 + size / 2), state, "lm")
        x += size + 8 + int(_font(size).getlength(state)) + size


def _draw_changes(axis: _Axis, steps: Sequence[int]) -> None:
    """Mark the steps of changes at the upper edge of the rows, with the step number where there is room."""
    top, free_from = axis.layout.top, 0.0
    if steps:
        axis.text((axis.left - 12, top - 8), "changes", "rs", _FAINT)
    for step in steps:
        x, half = axis.x(step), _font(axis.layout.text).getlength(f"{step:,}") / 2
        axis.canvas.line((x, top - 7, x, top - 2), fill=_FAINT, width=2)
        if x - half >= free_from:
            axis.text((x, top - 8), f"{step:,}", "ms", _FAINT)
            free_from = x + half + 24


def _draw_losses(
    axis: _Axis, curves: dict[str, Points], changes: Sequence[int], top: int, bottom: int
) -> None:
    """Draw the losses on one scale, with a line at each change."""
    for x in sorted({round(axis.x(step)) for step in changes}):
        for y in range(top, bottom, 8):
            axis.canvas.line((x, y, x, y + 3), fill=_FAINT, width=2)
    values = [value for points in curves.values() for _, value in points]
    low, high = min(values), max(values)
    size = axis.layout.text
    upper, lower = top + size // 2, bottom - size // 2
    scale = (lower - upper) / ((high - low) or 1.0)
    for number, (key, points) in enumerate(curves.items()):
        colour = _LOSS_COLOURS[number % len(_LOSS_COLOURS)]
        line = [(axis.x(step), lower - (value - low) * scale) for step, value in points if step <= axis.last]
        axis.canvas.line(line, fill=colour, width=3)
        axis.text((axis.left - 12, top + (number + 0.8) * size * 1.1), _cut(key, axis.layout), "rm", colour)
    right = axis.left + axis.layout.plot + 8
    axis.text((right, upper), f"{high:.3g}", "lm", _FAINT)
    axis.text((right, lower), f"{low:.3g}", "lm", _FAINT)


def _draw_axis(axis: _Axis, bottom: int) -> None:
    """Draw round step numbers below, and in a full picture the label of the axis."""
    layout = axis.layout
    axis.canvas.line((axis.left, bottom + 2, axis.left + layout.plot, bottom + 2), fill=_INK, width=2)
    for tick in _round_numbers(axis.first, axis.last, 8 if layout is _FULL else 4):
        axis.canvas.line((axis.x(tick), bottom + 2, axis.x(tick), bottom + 7), fill=_INK, width=2)
        half = _font(layout.text).getlength(f"{tick:,}") / 2
        x = min(axis.x(tick), axis.left + layout.plot + layout.right - half)
        axis.text((x, bottom + 10), f"{tick:,}", "mt")
    if layout is _FULL:
        axis.text((axis.left + layout.plot / 2, bottom + 54), "optimizer step", "mt")


def _round_numbers(first: int, last: int, most: int) -> range:
    """Multiples of 1, 2 or 5 times a power of ten, about as many as asked for, at most."""
    span = max(last - first, 1)
    power = 10 ** max(len(str(span)) - 2, 0)
    stride = next(factor * power for factor in (1, 2, 5, 10, 20, 50) if span / (factor * power) <= most)
    return range(-(-first // stride) * stride, last + 1, stride)
