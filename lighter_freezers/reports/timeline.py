"""Records what was frozen at which optimizer step. `timeline_picture` draws it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TypedDict

from lighter_freezers.reports.loss_history import LossHistory, Points
from lighter_freezers.reports.rank_history import History, RankHistory, RankHistoryState

__all__ = ["Timeline", "TimelineState", "rows_of"]

_MOST_ROWS = 24  # of a picture, before rows show blocks
_LAST_NUMBER = re.compile(r"\d+(?=\D*$)")
_BLOCK = re.compile(r"(?P<block>.+?\.\d+)\..+|(?P<stem>(?:.*\.)?)[^.]+\.(?P<index>\d+)")


class _Changes(TypedDict):
    components: list[str]
    steps: list[int]
    changes: list[dict[str, str]]


class TimelineState(_Changes, total=False):
    """A timeline in plain types, as a checkpoint holds it."""

    ranks: RankHistoryState  # missing in checkpoints from before LoRA
    losses: dict[str, Points]


class Timeline(History[str]):
    """The states of a model's components from event to event, as `ComponentState` names them.

    Args:
        components: Their names, in model order.
        steps: The optimizer steps of events.
        changes: The new states at each.
    """

    def __init__(
        self,
        components: Sequence[str],
        steps: Iterable[int] = (),
        changes: Iterable[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(steps, changes)
        self.components = list(components)
        self.ranks = RankHistory()
        self.losses = LossHistory()

    def spans(self, members: Iterable[str], last_step: int) -> list[tuple[int, int, str]]:
        """The states of components taken together, as (first step, end step, state).

        Args:
            members: Components that share a row. Together they have their common state, "frozen" if nothing
                of them trains, "LoRA only" if nothing else does, else "partial".
            last_step: The end of the last span.
        """
        now: dict[str, str] = dict.fromkeys(members, "")
        bounds: list[tuple[int, str]] = []
        for step, changes in self._events:
            mine = now.keys() & changes.keys()
            if not mine:
                continue
            now.update((name, changes[name]) for name in mine)
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
            "losses": {key: list(points) for key, points in self.losses.curves.items()},
        }

    @classmethod
    def from_state(cls, state: TimelineState) -> "Timeline":
        """The timeline from the result of `to_state`."""
        timeline = cls(state["components"], state["steps"], state["changes"])
        if "ranks" in state:
            timeline.ranks = RankHistory.from_state(state["ranks"])
        timeline.losses = LossHistory(state.get("losses"))
        return timeline

    def copy(self) -> "Timeline":
        """One that later records do not change."""
        return Timeline.from_state(self.to_state())


def _common(states: Iterable[str]) -> str:
    distinct = set(states)
    if len(distinct) == 1:
        return distinct.pop()
    training = distinct - {"frozen", "user-frozen"}
    if training == {"LoRA only"}:
        return "LoRA only"
    return "partial" if training else "frozen"


def blocks_of(components: Iterable[str]) -> dict[str, list[str]]:
    """The components of each block, such as "attn.3", "mlp.3" and all others that end in 3 of "h.3".

    "layers.3.conv1" and the like are in "layers.3"; a component that is alone keeps its name.
    """
    blocks: dict[str, list[str]] = {}
    for name in components:
        blocks.setdefault(_block_of(name), []).append(name)
    return {members[0] if len(members) == 1 else row: members for row, members in blocks.items()}


def rows_of(components: Sequence[str]) -> dict[str, list[str]]:
    """The components of each row: one per row, unless there are too many.

    Above 24 components a row shows a block, above 48 blocks several that follow each other, such as "h.4-7".

    Args:
        components: In model order.

    Returns:
        Row name to its components, in model order.
    """
    if len(components) <= _MOST_ROWS:
        return {name: [name] for name in components}
    rows = blocks_of(components)
    if len(rows) <= 2 * _MOST_ROWS:
        return rows
    length = -(-len(rows) // (2 * _MOST_ROWS - 8))  # 8: the layers around the blocks, and shorter rests
    merged: dict[str, list[str]] = {}
    for frame, alike in groupby(rows, key=lambda row: _LAST_NUMBER.sub("{}", row)):
        names = list(alike)
        for start in range(0, len(names), length):
            chunk = names[start : start + length]
            ends = [number[0] for name in (chunk[0], chunk[-1]) if (number := _LAST_NUMBER.search(name))]
            title = frame.replace("{}", "-".join(dict.fromkeys(ends)))
            merged[title] = [member for name in chunk for member in rows[name]]
    return merged


def _block_of(component: str) -> str:
    match = _BLOCK.fullmatch(component)
    if match is None:
        return component
    return match["block"] or f"{match['stem']}h.{match['index']}"
