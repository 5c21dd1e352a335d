"""A schedule of LoRA ranks on one model: which layers its entries mean, which are due, which are done."""

from collections.abc import Mapping, Sequence

from torch import nn

from lighter_freezers.engine.checkpoint_identity import entry_key, match_done, numbered
from lighter_freezers.engine.trainer_like import SavedState
from lighter_freezers.engine.triggers import LossOrWait, Moment
from lighter_freezers.lora.merging import check_merge
from lighter_freezers.lora.rank_change import OnZero
from lighter_freezers.lora.rank_schedule import RankEntry
from lighter_freezers.lora.ranks import Shrink, check_rank, check_shrink
from lighter_freezers.lora.sites import LoraSite, select_sites

__all__ = ["RankPlan", "resolved_ranks"]


class RankPlan:
    """The entries of a schedule, and how far it has come.

    Entries for a step or an epoch have their own time. Those that wait for a loss form a queue: only the
    first pending one is checked, and its wait counts from the previous one.

    Args:
        entries: From `parse_rank_schedule`.
    """

    def __init__(self, entries: Sequence[RankEntry]) -> None:
        self.entries = tuple(entries)
        keys = numbered(_key(entry) for entry in entries)
        self.titles = {key: str(entry) for key, entry in zip(keys, entries, strict=True)}
        self._done: set[int] = set()
        self._since = 0  # the optimizer step of the last entry of the queue
        self._value: float | None = None

    @property
    def looks_at_loss(self) -> bool:
        """Whether the loss decides about some entry that is left."""
        return any(condition.looks_at_loss for index in self._queue if (condition := self._condition(index)))

    @property
    def awaits(self) -> LossOrWait | None:
        """The condition of the first entry of the queue, if the loss decides about it."""
        condition: LossOrWait | None = self._condition(self._queue[0]) if self._queue else None
        return condition if condition is not None and condition.looks_at_loss else None

    def see(self, value: float) -> None:
        """Record a new value of the loss."""
        self._value = value

    def due(self, moment: Moment) -> dict[int, str]:
        """The entries whose time has come, in the order they are to be done, and why."""
        reached = [index for index in self._left if self.entries[index].is_reached(moment)]
        due = dict.fromkeys(sorted(reached, key=lambda index: self.entries[index].step or 0), "")
        since = self._since
        for index in self._queue:
            condition = self._condition(index)
            reason = condition.reason(self._value, moment.optimizer_step - since) if condition else None
            if reason is None:
                break
            due[index], since = reason, moment.optimizer_step
        return due

    def finish(self, indices: Sequence[int], moment: Moment) -> None:
        """These entries are done."""
        self._done |= set(indices)
        if any(self._condition(index) for index in indices):
            self._since = moment.optimizer_step

    def next_step(self, moment: Moment) -> int | None:
        """The next optimizer step at which an entry is due whatever the loss; None if there is none."""
        steps = [self.entries[index].step for index in self._left]
        if self._queue and (condition := self._condition(self._queue[0])):
            steps.append(condition.deadline(self._since))
        return min(
            (step for step in steps if step is not None and step > moment.optimizer_step), default=None
        )

    def state(self) -> dict[str, object]:
        """How far it has come, in plain types."""
        done = {key: title for index, (key, title) in enumerate(self.titles.items()) if index in self._done}
        return {"done": done, "since": self._since, "value": self._value}

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned; entries that have changed since count as not done."""
        done = match_done(state["done"], list(self.titles)).values()
        self._done = {index for index, key in enumerate(self.titles) if key in done}
        self._since, self._value = state["since"], state["value"]

    @property
    def _left(self) -> list[int]:
        return [index for index in range(len(self.entries)) if index not in self._done]

    @property
    def _queue(self) -> list[int]:
        return [index for index in self._left if self._condition(index) is not None]

    def _condition(self, index: int) -> LossOrWait | None:
        return self.entries[index].condition


def _key(entry: RankEntry) -> str:
    what: list[object] = [sorted(entry.rank_pattern)]
    if entry.condition is None:
        what += [entry.step, entry.epoch]
    return entry_key(
        ", ".join(f"{layer}: {rank}" for layer, rank in entry.rank_pattern), what, entry.condition
    )


def resolved_ranks(
    model: nn.Module, sites: Mapping[str, LoraSite], entry: RankEntry, on_zero: OnZero, shrink: Shrink
) -> dict[str, int]:
    """The layers that an entry means, by name, and their ranks.

    Raises:
        ValueError: A name means no layer with LoRA, a rank is impossible, or a layer gets two of them.
        RuntimeError: The rank of a layer cannot change, or its weight cannot take a merge.
    """
    ranks: dict[str, int] = {}
    origins: dict[str, str] = {}
    for pattern, rank in entry.rank_pattern:
        for site in select_sites(model, sites, pattern):
            try:
                check_rank(site.factors.layer, rank, site.factors.adapter_name)
                check_shrink(site.factors, shrink)
                if rank == 0 and on_zero == "merge":
                    check_merge(site.factors, model)
            except (ValueError, RuntimeError) as error:
                raise type(error)(f"Schedule entry {entry}, '{site.name}': {error}") from None
            if ranks.setdefault(site.name, rank) != rank:
                raise ValueError(
                    f"Schedule entry {entry} gives '{site.name}' two ranks: '{origins[site.name]}' says "
                    f"{ranks[site.name]}, '{pattern}' says {rank}. Make one of them narrower."
                )
            origins[site.name] = pattern
    return ranks
