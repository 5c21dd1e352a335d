"""A schedule of LoRA ranks as it stands in YAML: what to set, and when. Knows no Trainer and no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lighter_freezers.arguments import bound, count
from lighter_freezers.engine.rule_arguments import parse_entry
from lighter_freezers.engine.triggers import LossOrWait, Moment, parse_loss_or_wait

__all__ = ["RankEntry", "parse_rank_schedule"]

_KEYS = ("step", "epoch", "trigger_loss", "max_wait_iters", "rank_pattern", "desc")
_EXAMPLE = "{step: 500, rank_pattern: {attn.0: 8}}"


@dataclass(frozen=True)
class RankEntry:
    """One entry of a schedule.

    Attributes:
        rank_pattern: Pairs of a layer's name and its rank.
        step: The optimizer step it is for, counted from 0; None if it is not for a step.
        epoch: The epoch it is for, counted from 0; None if it is not for an epoch.
        condition: The loss or the number of steps it waits for; None if it is for a step or an epoch.
        description: What the user says about it.
    """

    rank_pattern: tuple[tuple[str, int], ...]
    step: int | None = None
    epoch: int | None = None
    condition: LossOrWait | None = None
    description: str = ""

    def is_reached(self, moment: Moment) -> bool:
        """Whether its step or epoch has come; never for one that waits for a loss."""
        return (self.step is not None and moment.optimizer_step >= self.step) or (
            self.epoch is not None and moment.epoch >= self.epoch
        )

    def __str__(self) -> str:
        ranks = ", ".join(f"{layer}: {rank}" for layer, rank in self.rank_pattern)
        if self.condition is not None:
            return f"{{{ranks}}} {self.condition}"
        return f"{{{ranks}}} at {f'step {self.step}' if self.epoch is None else f'epoch {self.epoch}'}"


def parse_rank_schedule(schedule: object, monitor: str) -> tuple[RankEntry, ...]:
    """Read a list of entries with `rank_pattern` and `step`, `epoch`, or `trigger_loss` and `max_wait_iters`.

    Args:
        schedule: As YAML gives it.
        monitor: The metric that `trigger_loss` is compared with.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A key is unknown, missing, or in conflict with another.
    """
    if not isinstance(schedule, Sequence) or isinstance(schedule, str):
        raise TypeError(f"schedule must be a list of entries such as {_EXAMPLE}. Got {schedule!r}.")
    if not schedule:
        raise ValueError(f"schedule is empty, so no rank would ever change. Give entries such as {_EXAMPLE}.")
    return tuple(_entry(f"schedule[{index}]", entry, monitor) for index, entry in enumerate(schedule))


def _entry(argument: str, entry: object, monitor: str) -> RankEntry:
    entry = parse_entry(argument, entry, _KEYS, _EXAMPLE)
    pattern = _rank_pattern(f"{argument}.rank_pattern", entry.get("rank_pattern"))
    description = str(entry.get("desc") or "")
    given = {key: entry.get(key) for key in _KEYS[:4] if entry.get(key) is not None}
    step = bound(f"{argument}.step", given.get("step"))
    epoch = bound(f"{argument}.epoch", given.get("epoch"), "epoch")
    if ("step" in given) + ("epoch" in given) + bool({"trigger_loss", "max_wait_iters"} & given.keys()) != 1:
        raise ValueError(
            f"{argument} must say when, in one way: step, epoch, or trigger_loss with max_wait_iters. "
            f"Got {', '.join(given) or 'none of them'}."
        )
    if step is not None or epoch is not None:
        return RankEntry(pattern, step, epoch, description=description)
    return RankEntry(pattern, condition=parse_loss_or_wait(argument, entry, monitor), description=description)


def _rank_pattern(argument: str, pattern: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(pattern, Mapping) or not pattern:
        raise TypeError(
            f"{argument} must map layers to ranks, such as {{attn.0: 8, wte: 4}}. Got {pattern!r}."
        )
    ranks = []
    for layer, rank in pattern.items():
        checked = count(f"{argument}['{layer}']", rank)
        if not isinstance(layer, str) or checked is None:
            raise TypeError(f"{argument} must map names to whole numbers. Got {layer!r}: {rank!r}.")
        ranks.append((layer, checked))
    return tuple(ranks)
