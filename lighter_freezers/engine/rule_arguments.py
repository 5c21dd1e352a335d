"""Parses the arguments of a freezing rule from YAML, and derives its title from them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lighter_freezers import arguments
from lighter_freezers._log import log
from lighter_freezers.engine.effects.learning_rates import LearningRateRequest
from lighter_freezers.engine.terms import (
    CutGradient,
    FrozenDtype,
    FrozenMode,
    NormMode,
    OptimizerState,
    Terms,
)
from lighter_freezers.engine.triggers import MetricTrigger, Schedule
from lighter_freezers.selection.name_summary import first_few
from lighter_freezers.selection.names import closest_names
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["parse_entry", "parse_learning_rate", "parse_schedule", "refuse_two_rates", "rule_title"]

_FROZEN_DTYPES: tuple[FrozenDtype, ...] = ("bf16",)


# Any: as YAML has it; each value is checked where it is read
def parse_entry(argument: str, entry: object, keys: Sequence[str], example: str) -> Mapping[str, Any]:
    """Check the keys of an entry of a list.

    Raises:
        TypeError: It is no mapping.
        ValueError: It has another key.
    """
    if not isinstance(entry, Mapping):
        raise TypeError(f"{argument} must be a mapping such as {example}. Got {entry!r}.")
    for key in entry:
        if key not in keys:
            closest = closest_names(str(key), keys, 1)[0]
            raise ValueError(
                f"{argument} does not know '{key}'. Closest: '{closest}'. Keys: {', '.join(keys)}."
            )
    return entry


def parse_schedule(
    from_step: int | str | None,
    from_epoch: int | str | None,
    until_step: int | str | None,
    until_epoch: int | str | None,
    windows: Sequence[Sequence[int | str]] | None,
    *,
    sets_rate: bool = False,
) -> Schedule:
    """Check the bounds or the windows in which to hold.

    Raises:
        TypeError: A bound is not a whole number.
        ValueError: Two of them contradict each other.
    """
    bounds = {
        "from_step": arguments.bound("from_step", from_step),
        "from_epoch": arguments.bound("from_epoch", from_epoch, "epoch"),
        "until_step": arguments.bound("until_step", until_step),
        "until_epoch": arguments.bound("until_epoch", until_epoch, "epoch"),
    }
    given = [name for name, value in bounds.items() if value is not None]
    if windows is not None and given:
        raise ValueError(f"windows says when to hold; {', '.join(given)} would too. Give one or the other.")
    for begin, end in (("from_step", "until_step"), ("from_epoch", "until_epoch")):
        first, last = bounds[begin], bounds[end]
        if first is not None and last is not None and first >= last:
            raise ValueError(f"{begin}={first} is not before {end}={last}, so this Freezer would never hold.")
    if 0 in (bounds["until_step"], bounds["until_epoch"]) and not sets_rate:
        log.warning("a Freezer until step or epoch 0 never holds anything: both are counted from 0")
    return Schedule(**bounds, windows=arguments.step_windows("windows", windows))


def refuse_two_rates(unfreeze_lr: object, unfreeze_lr_factor: object) -> None:
    """Raise where both a rate and a factor are given.

    Raises:
        ValueError: They are.
    """
    if unfreeze_lr is not None and unfreeze_lr_factor is not None:
        raise ValueError(
            "unfreeze_lr and unfreeze_lr_factor both set the learning rate of what thaws. Give one."
        )


def parse_learning_rate(
    unfreeze_lr: float | None,
    unfreeze_lr_factor: float | None,
    warmup_steps: int,
    growth: float | None = None,
    weight_decay: float | None = None,
) -> LearningRateRequest | None:
    """Check the learning rate and weight decay for what thaws; None to leave them alone.

    Raises:
        TypeError: A value is not a number.
        ValueError: Both rates are given, or one is not above zero, or none is given that could grow.
    """
    ramp = arguments.count("warmup_steps", warmup_steps) or 0
    refuse_two_rates(unfreeze_lr, unfreeze_lr_factor)
    if growth is not None and unfreeze_lr is None and unfreeze_lr_factor is None:
        raise ValueError(
            "unfreeze_lr_growth multiplies the rate of what thaws after each epoch, up to that of the rest. "
            "Give the first rate: unfreeze_lr_factor: 0.1, or unfreeze_lr."
        )
    decay = None if weight_decay is None else arguments.number("unfreeze_weight_decay", weight_decay)
    if decay is not None and not 0 <= decay < math.inf:
        raise ValueError(f"unfreeze_weight_decay must be at least 0 and finite. Got {weight_decay}.")
    if (unfreeze_lr, unfreeze_lr_factor, weight_decay) == (None, None, None) and not ramp:
        return None
    return LearningRateRequest(
        absolute=None if unfreeze_lr is None else arguments.positive("unfreeze_lr", unfreeze_lr),
        factor=1.0
        if unfreeze_lr_factor is None
        else arguments.positive("unfreeze_lr_factor", unfreeze_lr_factor),
        warmup_steps=ramp,
        growth=None if growth is None else arguments.positive("unfreeze_lr_growth", growth),
        weight_decay=decay,
    )


def parse_terms(
    optimizer_state: OptimizerState,
    cut_gradient: CutGradient,
    frozen_norms: NormMode = "eval",
    frozen_mode: FrozenMode = "train",
    frozen_dtype: FrozenDtype | None = None,
) -> Terms:
    """Check what is asked for while something is held.

    Raises:
        ValueError: A value is none of the choices.
    """
    return Terms(
        arguments.choice("optimizer_state", optimizer_state, ("keep", "reset", "free")),
        arguments.choice("frozen_norms", frozen_norms, ("eval", "stats", "train")),
        arguments.choice("cut_gradient", cut_gradient, ("auto", "never")),
        arguments.choice("frozen_mode", frozen_mode, ("train", "eval")),
        None if frozen_dtype is None else arguments.choice("frozen_dtype", frozen_dtype, _FROZEN_DTYPES),
    )


def rule_title(
    selector: ParameterSelector,
    schedule: Schedule,
    trigger: MetricTrigger | None,
    train: Sequence[str] = (),
) -> str:
    """What logs call the rule: what it selects, or what it leaves alone, and when it holds."""
    wanted = train or [*selector.names, *selector.prefixes, *selector.patterns]
    # quoted: lighter's log would read an unquoted word after the bracket as a colour
    what = "all but " * bool(train) + first_few([repr(text) for text in wanted])
    until = f"until {trigger}" if trigger else ""
    return f"Freezer[{' '.join(part for part in (what, str(schedule), until) if part)}]"
