"""The LoRA rank of each component over the steps, and its marks in the timeline. Needs no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

__all__ = ["RankHistory", "RankHistoryState", "draw_ranks"]

_SMALLEST_ROW = 14  # pixels for a mark


class RankHistoryState(TypedDict):
    """Ranks in plain types, as a checkpoint holds them."""

    steps: list[int]
    ranks: list[dict[str, int]]


class RankHistory:
    """The ranks of components from change to change."""

    def __init__(self) -> None:
        self._events: list[tuple[int, dict[str, int]]] = []

    @property
    def steps(self) -> list[int]:
        """The optimizer steps at which a rank changed, in ascending order."""
        return [step for step, _ in self._events]

    def record(self, optimizer_step: int, ranks: Mapping[str, int], *, is_change: bool = False) -> None:
        """Record the ranks that components have from a step on; records of later steps are dropped.

        Args:
            optimizer_step: The first step with them.
            ranks: The largest of each component.
            is_change: Whether some rank has changed, if only one that is not the largest.
        """
        noted = [changes for step, changes in self._events if step == optimizer_step]
        ranks = {name: rank for changes in (*noted, ranks) for name, rank in changes.items()}
        self._events = [event for event in self._events if event[0] < optimizer_step]
        latest = {name: rank for _, changes in self._events for name, rank in changes.items()}
        changes = {name: rank for name, rank in ranks.items() if latest.get(name) != rank}
        if changes or is_change:
            self._events.append((optimizer_step, changes))

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
        return {
            "steps": self.steps,
            "ranks": [dict(changes) for _, changes in self._events],
        }

    @classmethod
    def from_state(cls, state: RankHistoryState) -> "RankHistory":
        """The history from the result of `to_state`."""
        history = cls()
        history._events = [
            (step, dict(changes)) for step, changes in zip(state["steps"], state["ranks"], strict=True)
        ]
        return history


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
