"""Log sentences about changes of LoRA ranks."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from lighter_freezers.lora.rank_change import RankChange
from lighter_freezers.lora.sites import LoraSite
from lighter_freezers.selection.name_summary import first_few

__all__ = ["in_words", "notes_of"]

_SHOWN = 4  # layers that a sentence names


def in_words(title: str, change: RankChange) -> str:
    """A sentence about a change of rank, for the log; the title may name several layers."""
    text = f"LoRA rank {change.rank_after} for {title}"
    if change.rank_before != change.rank_after:
        text += f" (was {change.rank_before})"
    elif change.frozen:
        text += ", frozen as it is"
    else:
        text += ", training again" if change.thawed else " as before"
    if change.is_merged:
        return f"{text}, merged into the base weight"
    return f"{text}, discards {change.discarded:.3g} of its update" if change.discarded else text


def notes_of(changes: Iterable[tuple[LoraSite, RankChange]], reasons: Sequence[str]) -> list[str]:
    """A sentence for all layers with the same change.

    Args:
        changes: Layers, and what happened to them.
        reasons: Why, in words; none where a schedule said so.
    """
    alike: dict[tuple[object, ...], list[tuple[str, RankChange]]] = {}
    for site, change in changes:
        kind = (change.rank_before, change.rank_after, change.is_merged, bool(change.frozen))
        alike.setdefault(kind, []).append((site.title, change))
    why = f" ({'; '.join(reasons)})" if reasons else ""
    notes = []
    for group in alike.values():
        titles = [title for title, _ in group]
        lost = math.hypot(*(change.discarded for _, change in group))
        notes.append(
            in_words(first_few(titles, _SHOWN), dataclasses.replace(group[0][1], discarded=lost)) + why
        )
    return notes
