"""Explicit stages as they stand in YAML: what thaws in each, at which rates, until when."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from lighter_freezers import arguments
from lighter_freezers.engine.early_stopping import OutOfPatience
from lighter_freezers.engine.effects.learning_rates import LearningRateRequest
from lighter_freezers.engine.effects.stage_optimizers import StageOptimizer
from lighter_freezers.engine.rule_arguments import (
    parse_entry,
    parse_learning_rate,
    parse_schedule,
    parse_terms,
    refuse_two_rates,
)
from lighter_freezers.engine.stage_best import BestRequest
from lighter_freezers.engine.stages import StageEnd
from lighter_freezers.engine.terms import NormMode
from lighter_freezers.engine.triggers import parse_metric_trigger
from lighter_freezers.layers.stage_targets import OPTIMIZER_KEYS, Entry, parse_stage_optimizer
from lighter_freezers.selection.words import parse_words

__all__ = ["Entry", "Stage", "parse_restore_best", "read_stages"]

_KEYS = (
    "thaw",
    "freeze",
    "until_step",
    "until_epoch",
    "until_metric",
    "until_early_stopping",
    "unfreeze_lr",
    "unfreeze_lr_factor",
    "unfreeze_lr_growth",
    "unfreeze_weight_decay",
    "warmup_steps",
    "frozen_norms",
    *OPTIMIZER_KEYS,
    "desc",
)
_EXAMPLE = "[{thaw: head, until_epoch: 2}, {thaw: 'layers:block.-4:'}]"
_STATES: tuple[Literal["keep", "restore"], ...] = ("keep", "restore")
Rates: TypeAlias = tuple[tuple[str, LearningRateRequest], ...]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        argument: Its place in the list, for errors.
        thaw: What trains from its beginning on: names, paths of modules and patterns.
        freeze: What is held again from its beginning on.
        end: What ends it.
        rate: The rate of what thaws; None for that of the optimizer.
        rates: Rates of parts of it: what each covers, and the rate.
        by_depth: Factors of the lowest and the highest layer, with equal ratios from layer to layer between.
        frozen_norms: What batch-norm layers do that are held in it.
        optimizer: The optimizer and the LR scheduler that it begins with; None for those that there are.
    """

    argument: str
    thaw: tuple[str, ...]
    freeze: tuple[str, ...]
    end: StageEnd
    rate: LearningRateRequest | None
    rates: Rates
    by_depth: tuple[float, float] | None
    frozen_norms: NormMode
    optimizer: StageOptimizer | None


def read_stages(stages: object, schedule: object, beside: Mapping[str, object]) -> tuple[Stage, ...]:
    """Read a list of stages, or the file in which it stands.

    Args:
        stages: The list, as YAML has it.
        schedule: Instead of it, the path of a YAML file with the key `stages`.
        beside: Arguments that make stages by themselves; none of them may have a value.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A key is unknown or in conflict with another, or a stage never ends.
    """
    if stages is not None and schedule is not None:
        raise ValueError("stages and schedule both say what the stages are. Give one of them.")
    if given := [name for name, value in beside.items() if value]:
        raise ValueError(
            f"The stages say what thaws when; {', '.join(given)} would too. Remove one or the other."
        )
    argument, entries = ("stages", stages) if schedule is None else _load(schedule)
    if not isinstance(entries, list):
        raise TypeError(f"{argument} must be a list such as {_EXAMPLE}. Got {entries!r}.")
    read = tuple(_stage(f"{argument}[{index}]", entry, index) for index, entry in enumerate(entries))
    if len(read) < 2:
        raise ValueError(f"{argument} has {len(read)} of at least 2 stages. For one, use a Freezer.")
    for stage in read[:-1]:
        if stage.end == StageEnd():
            raise ValueError(
                f"{stage.argument} never ends. Give until_step, until_epoch, until_metric or "
                "until_early_stopping; only the last stage ends with the run."
            )
    if read[-1].end != StageEnd():
        raise ValueError(
            f"{read[-1].argument} is the last stage and ends with the run: remove {read[-1].end}."
        )
    return read


def _load(schedule: object) -> tuple[str, object]:
    """The name of the list in errors, and the list."""
    if not isinstance(schedule, (str, os.PathLike)):
        raise TypeError(f"schedule must be the path of a YAML file. Got {schedule!r}.")
    path = Path(schedule)
    loaded = arguments.file_content("schedule", path)
    if not isinstance(loaded, Mapping) or list(loaded) != ["stages"]:
        raise ValueError(f"schedule: '{path}' must have the key 'stages' and no other: stages: {_EXAMPLE}.")
    return f"{path.name}: stages", loaded["stages"]


def _stage(argument: str, entry: object, index: int) -> Stage:
    entry = parse_entry(argument, entry, _KEYS, "{thaw: head, until_epoch: 2}")
    thaw, freeze = (parse_words(f"{argument}.{key}", entry.get(key)) for key in ("thaw", "freeze"))
    if not thaw and not index:
        raise ValueError(f"{argument} thaws nothing, so nothing would train. Give thaw, such as head.")
    steps, epochs, metric = (entry.get(key) for key in ("until_step", "until_epoch", "until_metric"))
    trigger = None if metric is None else parse_metric_trigger(f"{argument}.until_metric", metric)
    try:
        schedule = parse_schedule(None, None, steps, epochs, None, sets_rate=True)
        by_depth = _parse_rates_by_depth(entry)
        rate, rates = _parse_rates(entry if by_depth is None else {**entry, "unfreeze_lr_factor": 1.0})
        is_patient = arguments.flag("until_early_stopping", entry.get("until_early_stopping", False))
        norms = parse_terms("keep", "auto", entry.get("frozen_norms", "eval")).frozen_norms
        optimizer = parse_stage_optimizer(argument, entry)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{argument}: {error}") from error
    end = StageEnd(schedule, trigger, OutOfPatience() if is_patient else None)
    return Stage(argument, thaw, freeze, end, rate, rates, by_depth, norms, optimizer)


def _parse_rates_by_depth(entry: Entry) -> tuple[float, float] | None:
    """The factors of the lowest and the highest layer, where two are given."""
    factors = entry.get("unfreeze_lr_factor")
    if not isinstance(factors, list):
        return None
    if len(factors) != 2:
        raise ValueError(
            "unfreeze_lr_factor takes one factor, a mapping, or two of them for the lowest and the highest "
            f"layer, such as [0.01, 1.0]. Got {factors!r}."
        )
    lowest, highest = (arguments.positive("unfreeze_lr_factor", each) for each in factors)
    return lowest, highest


def _parse_rates(entry: Entry) -> tuple[LearningRateRequest | None, Rates]:
    """The rate of all that thaws, and those of parts of it."""
    absolute, factor, warmup = (
        entry.get(key) for key in ("unfreeze_lr", "unfreeze_lr_factor", "warmup_steps")
    )
    growth, decay = entry.get("unfreeze_lr_growth"), entry.get("unfreeze_weight_decay")
    beside = (warmup or 0, growth, decay)
    parts = factor if isinstance(factor, Mapping) else {}
    refuse_two_rates(absolute, factor)
    rest = 1.0 if growth else None  # what no part covers has a rate that can grow, too
    whole = parse_learning_rate(absolute, rest if parts else factor, *beside)
    found = [(str(word), parse_learning_rate(None, part, *beside)) for word, part in parts.items()]
    return whole, tuple((word, rate) for word, rate in found if rate is not None)


def parse_restore_best(value: object) -> BestRequest | None:
    """Read which weights a stage begins with, as YAML has it.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A key is missing or unknown.
    """
    if value is None or isinstance(value, bool):
        return BestRequest("") if value else None
    if not isinstance(value, Mapping):
        raise TypeError(f"restore_best must be true or a mapping: {{monitor: val/loss}}. Got {value!r}.")
    keys = ("monitor", "mode", "optimizer_state", "at_end")
    if unknown := [key for key in value if key not in keys]:
        raise ValueError(f"restore_best does not know '{unknown[0]}'. Keys: {', '.join(keys)}.")
    monitor = value.get("monitor")
    if not isinstance(monitor, str) or not monitor:
        raise ValueError(f"restore_best needs monitor, the name of a logged metric. Got {dict(value)!r}.")
    state = arguments.choice("restore_best.optimizer_state", value.get("optimizer_state", "keep"), _STATES)
    return BestRequest(
        monitor,
        arguments.choice("restore_best.mode", value.get("mode", "min"), ("min", "max")),
        with_optimizer=state == "restore",
        at_end=arguments.flag("restore_best.at_end", value.get("at_end", False)),
    )
