"""What components had from which step on; their LoRA ranks, and the marks of these. Needs no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["History", "RankHistory", "RankHistoryState", "draw_ranks"]

_SMALLEST_ROW = 14  # pixels for a mark

Value = TypeVar("Value")


class RankHistoryState(TypedDict):
    """Ranks in plain types, as a checkpoint holds them."""

    steps: list[int]
    ranks: list[dict[str, int]]


class History(Generic[Value]):
    """The values of components from change to change. Abstract: a subclass says what they are."""

    def __init__(self, steps: Iterable[int] = (), changes: Iterable[Mapping[str, Value]] = ()) -> None:
        self._keep([(step, dict(values)) for step, values in zip(steps, changes, strict=True)])

    @property
    def steps(self) -> list[int]:
        """The optimizer steps at which something changed, in ascending order."""
        return [step for step, _ in self._events]

    def record(self, optimizer_step: int, values: Mapping[str, Value], *, is_change: bool = False) -> None:
        """Record the values that components have from a step on.

        Records of later steps are dropped: a run resumed from an earlier checkpoint sends its whole state
        again, without what came after. At this step, the new values are merged.

        Args:
            optimizer_step: The first step they hold for.
            values: Component -> its value; those that have not changed may be left out.
            is_change: Whether something has changed that the values do not show.
        """
        if self._events and self._events[-1][0] >= optimizer_step:
            noted = [changes for step, changes in self._events if step == optimizer_step]
            self._keep([event for event in self._events if event[0] < optimizer_step])
            values = {name: value for changes in (*noted, values) for name, value in changes.items()}
        changes = {name: value for name, value in values.items() if self._latest.get(name) != value}
        if changes or is_change:
            self._events.append((optimizer_step, changes))
            self._latest.update(changes)

    def _keep(self, events: list[tuple[int, dict[str, Value]]]) -> None:
        self._events = events
        self._latest = {name: value for _, changes in events for name, value in changes.items()}


class RankHistory(History[int]):
    """The ranks of components, the largest of each."""

    def marks(self, members: Iterable[str]) -> list[tuple[int, str]]:
        """The texts for a row of components, and the steps they start at: "r 8", or "r 4-8"."""
        now = dict.fromkeys(members, -1)
        marks: list[tuple[int, str]] = []
        for step, changes in self._events:
            now.update((name, changes[name]) for name in now.keys() & changes.keys())
            ranks = sorted({rank for rank in now.values() if rank >= 0})
            text = "" if not ranks else f"r {ranks[0]}" + (f"-{ranks[-1]}" if len(ranks) > 1 else "")
            if text and (not marks or marks[-1][1] != text):
                marks.append((step, text))
        return marks

    def to_state(self) -> RankHistoryState:
        """The history in plain types."""
        return {"steps": self.steps, "ranks": [dict(changes) for _, changes in self._events]}

    @classmethod
    def from_state(cls, state: RankHistoryState) -> "RankHistory":
        """The history from the result of `to_state`."""
        return cls(state["steps"], state["ranks"])


def draw_ranks(
    canvas: "ImageDraw",
    marks: Sequence[tuple[float, str]],
    top: int,
    height: int,
    font: "FreeTypeFont | ImageFont",
) -> None:
    """Write ranks into a row, each where it starts, if there is room.

    Args:
        canvas: The image to draw on.
        marks: Pixels from the left, and the text.
        top: The upper edge of the row, in pixels.
        height: Of the row, in pixels. Rows that are too thin get no marks.
        font: For the texts.
    """
    if height < _SMALLEST_ROW:
        return
    free_from = 0.0
    for x, text in marks:
        if x < free_from:
            continue
        right = x + font.getlength(text) + 10
        canvas.rectangle((x, top + 2, right, top + height - 5), fill="white", outline="#222222")
        canvas.text((x + 5, top + (height - 3) / 2), text, fill="#222222", font=font, anchor="lm")
        free_from = right + 4
