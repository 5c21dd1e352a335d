"""Records what was frozen at which optimizer step, and draws it: layers by steps. Needs no torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypedDict

from lighter_freezers.reports.rank_history import RankHistory, RankHistoryState, draw_ranks

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["Timeline", "TimelineState", "draw_timeline", "rows_of"]

# Distinct for every kind of colour vision, and by lightness in print; "partial" is striped in the first two.
_COLOURS = {"frozen": "#2F6DAA", "trainable": "#F0A818", "user-frozen": "#CFCFCF"}
_LEGEND = ("frozen", "trainable", "partial", "user-frozen")
_INK, _FAINT = "#222222", "#8A8A8A"
_PLOT_WIDTH, _MARGIN, _TOP, _BOTTOM = 1200, 56, 150, 100  # pixels
_TEXT, _TITLE, _RANK = 22, 32, 18  # font sizes in pixels
_BLOCK = re.compile(r"(?P<block>.+?\.\d+)\..+|(?P<stem>(?:.*\.)?)[^.]+\.(?P<index>\d+)")


class _Changes(TypedDict):
    components: list[str]
    steps: list[int]
    changes: list[dict[str, str]]


class TimelineState(_Changes, total=False):
    """A timeline in plain types, as a checkpoint holds it."""

    ranks: RankHistoryState  # missing in checkpoints from before LoRA


class Timeline:
    """The states of a model's components from event to event.

    Args:
        components: Their names, in model order.
    """

    def __init__(self, components: Sequence[str]) -> None:
        self.components = list(components)
        self._events: list[tuple[int, dict[str, str]]] = []
        self._latest: dict[str, str] = {}
        self.ranks = RankHistory()

    @property
    def steps(self) -> list[int]:
        """The optimizer steps at which something changed, in ascending order."""
        return [step for step, _ in self._events]

    def record(self, optimizer_step: int, states: Mapping[str, str]) -> None:
        """Record the states that components have from a step on.

        Records of later steps are dropped: a run resumed from an earlier checkpoint sends its whole state
        again, without what came after. At this step, the new states are merged.

        Args:
            optimizer_step: The first step they hold for.
            states: Component -> "frozen", "trainable", "partial" or "user-frozen"; only what changed.
        """
        if self._events and self._events[-1][0] >= optimizer_step:
            noted = [changes for step, changes in self._events if step == optimizer_step]
            self._keep([event for event in self._events if event[0] < optimizer_step])
            states = {name: state for changes in (*noted, states) for name, state in changes.items()}
        changes = {name: state for name, state in states.items() if self._latest.get(name) != state}
        if changes:
            self._events.append((optimizer_step, changes))
            self._latest.update(changes)

    def _keep(self, events: list[tuple[int, dict[str, str]]]) -> None:
        self._events = events
        self._latest = {name: state for _, changes in events for name, state in changes.items()}

    def spans(self, members: Iterable[str], last_step: int) -> list[tuple[int, int, str]]:
        """The states of components taken together, as (first step, end step, state).

        Args:
            members: Components that share a row. Together they have their common state, "frozen" if nothing
                of them trains, else "partial".
            last_step: The end of the last span.
        """
        now: dict[str, str] = dict.fromkeys(members, "")
        bounds: list[tuple[int, str]] = []
        for step, changes in self._events:
            now.update((name, changes[name]) for name in now.keys() & changes.keys())
            state = _common(now.values())
            if not bounds or bounds[-1][1] != state:
                bounds.append((step, state))
        ends = [step for step, _ in bounds[1:]] + [last_step]
        return [(start, end, state) for (start, state), end in zip(bounds, ends, strict=False) if start < end]

    def to_state(self) -> TimelineState:
        """The timeline in plain types."""
        return {
            "components": list(self.components),
            "steps": self.steps,
            "changes": [dict(changes) for _, changes in self._events],
            "ranks": self.ranks.to_state(),
        }

    @classmethod
    def from_state(cls, state: TimelineState) -> "Timeline":
        """The timeline from the result of `to_state`."""
        timeline = cls(state["components"])
        timeline._keep([(step, dict(c)) for step, c in zip(state["steps"], state["changes"], strict=True)])
        if "ranks" in state:
            timeline.ranks = RankHistory.from_state(state["ranks"])
        return timeline


def _common(states: Iterable[str]) -> str:
    distinct = set(states)
    if len(distinct) == 1:
        return distinct.pop()
    return "frozen" if distinct == {"frozen", "user-frozen"} else "partial"


def rows_of(components: Sequence[str], max_rows: int = 60) -> dict[str, list[str]]:
    """The components of each row: one per row, unless there are too many and blocks are merged.

    Args:
        components: In model order.
        max_rows: Above this, "attn.3", "mlp.3" and all others that end in 3 become "h.3", and
            "layers.3.conv1" and the like become "layers.3".

    Returns:
        Row name to its components, in model order.
    """
    if len(components) <= max_rows:
        return {name: [name] for name in components}
    blocks: dict[str, list[str]] = {}
    for name in components:
        blocks.setdefault(_block_of(name), []).append(name)
    return {members[0] if len(members) == 1 else row: members for row, members in blocks.items()}


def _block_of(component: str) -> str:
    match = _BLOCK.fullmatch(component)
    if match is None:
        return component
    return match["block"] or f"{match['stem']}h.{match['index']}"


def draw_timeline(timeline: Timeline, last_step: int) -> "Image":
    """Draw layers by steps, coloured by state; above 60 components one row per block.

    Args:
        timeline: What to draw, with at least one event.
        last_step: Optimizer steps done so far: the right end of the axis.
    """
    from PIL import Image, ImageDraw

    rows = rows_of(timeline.components)
    height = _row_height(len(rows))
    left = _MARGIN + int(max(_font(_name_size(height)).getlength(name) for name in [*rows, "changes"])) + 24
    size = (left + _PLOT_WIDTH + _MARGIN, _TOP + height * len(rows) + _BOTTOM)
    image = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(image)
    first_step = timeline.steps[0]
    scale = _PLOT_WIDTH / max(last_step - first_step, 1)
    for index, (name, members) in enumerate(rows.items()):
        top = _TOP + index * height
        _draw_row_name(canvas, name, index, left, top, height)
        for start, end, state in timeline.spans(members, last_step):
            box = (left + (start - first_step) * scale, left + (end - first_step) * scale)
            _fill(image, (round(box[0]), top, round(box[1]), top + height - (2 if height > 8 else 0)), state)
        marks = [(left + (step - first_step) * scale, text) for step, text in timeline.ranks.marks(members)]
        draw_ranks(canvas, marks, top, height, _font(max(8, min(_RANK, height - 6))))
    _draw_heading(image, canvas, left)
    _draw_axis(canvas, left, _TOP + height * len(rows), (first_step, last_step))
    steps = sorted({*timeline.steps, *timeline.ranks.steps})
    _draw_changes(canvas, left, [(step, left + (step - first_step) * scale) for step in steps])
    return image


def _row_height(num_rows: int) -> int:
    return max(2, min(36, 1800 // num_rows))


def _name_size(row_height: int) -> int:
    return min(_TEXT, max(row_height, 16))


@lru_cache(maxsize=8)
def _font(size: int) -> "FreeTypeFont | ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fill(image: "Image", box: tuple[int, int, int, int], state: str) -> None:
    """Colour a box; stripes of "frozen" and "trainable" where some of it trains."""
    from PIL import Image, ImageDraw

    if state in _COLOURS:
        image.paste(_COLOURS[state], box)
        return
    width, height = box[2] - box[0], box[3] - box[1]
    tile = Image.new("RGB", (max(width, 1), height), _COLOURS["frozen"])
    stripes = ImageDraw.Draw(tile)
    for x in range(-height, width, 16):
        stripes.line((x, height, x + height, 0), fill=_COLOURS["trainable"], width=6)
    image.paste(tile, box[:2])


def _draw_row_name(canvas: "ImageDraw", name: str, index: int, left: int, top: int, height: int) -> None:
    """Write a row's name to its left; where rows are thin, only every second, third, ... name."""
    size = _name_size(height)
    if index % -(-size // height) == 0:
        canvas.text((left - 12, top + height / 2 - 1), name, fill=_INK, font=_font(size), anchor="rm")


def _draw_heading(image: "Image", canvas: "ImageDraw", left: int) -> None:
    canvas.text((left, 20), "Which layers train", fill=_INK, font=_font(_TITLE), anchor="lt")
    x = left
    for state in _LEGEND:
        _fill(image, (x, 74, x + 36, 98), state)
        canvas.text((x + 46, 86), state, fill=_INK, font=_font(_TEXT), anchor="lm")
        x += 46 + int(_font(_TEXT).getlength(state)) + 36


def _draw_axis(canvas: "ImageDraw", left: int, bottom: int, steps: tuple[int, int]) -> None:
    """Draw round step numbers below the rows, and the label of the axis."""
    first, last = steps
    canvas.line((left, bottom + 2, left + _PLOT_WIDTH, bottom + 2), fill=_INK, width=2)
    for tick in _round_numbers(first, last):
        x = left + (tick - first) * _PLOT_WIDTH / max(last - first, 1)
        canvas.line((x, bottom + 2, x, bottom + 10), fill=_INK, width=2)
        canvas.text((x, bottom + 16), f"{tick:,}", fill=_INK, font=_font(_TEXT), anchor="mt")
    middle = left + _PLOT_WIDTH / 2
    canvas.text((middle, bottom + 54), "optimizer step", fill=_INK, font=_font(_TEXT), anchor="mt")


def _round_numbers(first: int, last: int) -> range:
    """About eight multiples of 1, 2 or 5 times a power of ten, at most."""
    span = max(last - first, 1)
    power = 10 ** max(len(str(span)) - 2, 0)
    stride = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= 8)
    return range(-(-first // stride) * stride, last + 1, stride)


def _draw_changes(canvas: "ImageDraw", left: int, changes: Sequence[tuple[int, float]]) -> None:
    """Mark the steps of changes above the rows, with the step number where there is room."""
    canvas.text((left - 12, _TOP - 12), "changes", fill=_FAINT, font=_font(18), anchor="rb")
    free_from = 0.0
    for step, x in changes:
        canvas.line((x, _TOP - 8, x, _TOP - 3), fill=_FAINT, width=2)
        half = _font(18).getlength(f"{step:,}") / 2
        if x - half >= free_from:
            canvas.text((x, _TOP - 12), f"{step:,}", fill=_FAINT, font=_font(18), anchor="mb")
            free_from = x + half + 40
