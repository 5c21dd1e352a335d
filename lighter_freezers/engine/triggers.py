"""When something happens: moments of a run, schedules over them, and conditions on a metric.

Everything here is immutable: what a trigger has seen is a `History` that the caller keeps and saves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lighter_freezers.arguments import bound, count, number

__all__ = [
    "History",
    "LossOrWait",
    "MetricBelow",
    "MetricTrigger",
    "Moment",
    "Plateau",
    "Schedule",
    "parse_loss_or_wait",
    "parse_metric_trigger",
    "parse_plateau",
]


@dataclass(frozen=True)
class Moment:
    """A point of a run.

    Attributes:
        optimizer_step: Optimizer steps done so far, as the Trainer counts them; the next one has this number.
        epoch: The epoch that runs now, counted from 0.
    """

    optimizer_step: int
    epoch: int


@dataclass(frozen=True)
class Schedule:
    """When to hold: a pure function of the moment.

    It begins at `from_step` or `from_epoch` and ends at `until_step` or `until_epoch`, in each case whichever
    comes first. `windows` are half-open intervals of optimizer steps and stand alone.
    """

    from_step: int | None = None
    from_epoch: int | None = None
    until_step: int | None = None
    until_epoch: int | None = None
    windows: tuple[tuple[int, int], ...] = ()

    def is_active(self, moment: Moment) -> bool:
        """Whether to hold at this moment."""
        step = moment.optimizer_step
        if self.windows:
            return any(start <= step < end for start, end in self.windows)
        has_begun = (self.from_step is None and self.from_epoch is None) or _reached(
            moment, self.from_step, self.from_epoch
        )
        return has_begun and not _reached(moment, self.until_step, self.until_epoch)

    def has_ended(self, moment: Moment) -> bool:
        """Whether it is never active from this moment on."""
        if self.windows:
            return moment.optimizer_step >= self.windows[-1][1]
        return _reached(moment, self.until_step, self.until_epoch)

    def last_end(self, moment: Moment) -> int | None:
        """The step at which it ended last, as far as steps alone tell; None if there is none."""
        counts_epochs = self.from_epoch is not None or self.until_epoch is not None
        bound = None if counts_epochs else self.until_step
        ends = [end for _, end in self.windows] or ([] if bound is None else [bound])
        return max((end for end in ends if end <= moment.optimizer_step), default=None)

    def beyond(self, last: Moment) -> list[str]:
        """What of it begins after the last moment of the run."""
        late = [f"[{start}, {end})" for start, end in self.windows if start > last.optimizer_step]
        begin = _either("from", self.from_step, self.from_epoch)
        return late if not begin or _reached(last, self.from_step, self.from_epoch) else [begin]

    @property
    def steps(self) -> list[int]:
        """The optimizer steps at which it may change."""
        bounds = [bound for window in self.windows for bound in window]
        return sorted({*bounds, *(step for step in (self.from_step, self.until_step) if step is not None)})

    @property
    def epochs(self) -> list[int]:
        """The epochs at which it may change."""
        return sorted({epoch for epoch in (self.from_epoch, self.until_epoch) if epoch is not None})

    def next_step(self, moment: Moment) -> int | None:
        """The next optimizer step at which it may change; None when no step matters any more."""
        return next((step for step in self.steps if step > moment.optimizer_step), None)

    def __str__(self) -> str:
        if self.windows:
            return "in steps " + ", ".join(f"[{start}, {end})" for start, end in self.windows)
        begin = _either("from", self.from_step, self.from_epoch)
        end = _either("until", self.until_step, self.until_epoch)
        return " ".join(part for part in (begin, end) if part)


def _reached(moment: Moment, step: int | None, epoch: int | None) -> bool:
    return (step is not None and moment.optimizer_step >= step) or (
        epoch is not None and moment.epoch >= epoch
    )


def _either(word: str, step: int | None, epoch: int | None) -> str:
    bounds = [f"{unit} {bound}" for unit, bound in (("step", step), ("epoch", epoch)) if bound is not None]
    return f"{word} {' or '.join(bounds)}" if bounds else ""


@dataclass(frozen=True)
class History:
    """What a metric trigger has seen.

    Attributes:
        best: The best value so far; None before the first.
        num_without_progress: Consecutive checks without a new best; where several plateaus are waited for,
            plus `patience` checks for each plateau that is over.
        has_fired: Latched: stays true once the condition was met.
    """

    best: float | None = None
    num_without_progress: int = 0
    has_fired: bool = False


@dataclass(frozen=True)
class MetricBelow:
    """Fires when a metric is strictly below `below`, or strictly above `above`."""

    monitor: str
    below: float | None = None
    above: float | None = None

    def observe(self, value: float, history: History) -> History:
        """The history after one more value; a NaN meets no condition."""
        is_met = (self.below is not None and value < self.below) or (
            self.above is not None and value > self.above
        )
        return replace(history, has_fired=history.has_fired or is_met)

    def __str__(self) -> str:
        if self.below is not None:
            return f"{self.monitor} < {self.below:g}"
        return f"{self.monitor} > {self.above:g}"


@dataclass(frozen=True)
class Plateau:
    """Fires when a metric has had no new best by more than `min_delta` in `patience` consecutive checks.

    With a `number` above 1 it fires at that plateau: the checks are counted from 0 again after each.
    """

    monitor: str
    patience: int
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"
    number: int = 1

    def observe(self, value: float, history: History) -> History:
        """The history after one more value; NaN counts as no progress."""
        sign = 1.0 if self.mode == "min" else -1.0
        is_best = not math.isnan(value) and (
            history.best is None or sign * value < sign * history.best - self.min_delta
        )
        if is_best:
            over = history.num_without_progress // self.patience * self.patience
            return replace(history, best=value, num_without_progress=over)
        count = history.num_without_progress + 1
        has_fired = history.has_fired or count >= self.number * self.patience
        return replace(history, num_without_progress=count, has_fired=has_fired)

    def __str__(self) -> str:
        return f"{self.monitor} on a plateau of {self.patience} checks"


MetricTrigger = MetricBelow | Plateau

_FORMS = "{monitor: val/loss, below: 2.5} or {monitor: val/loss, plateau: {patience: 3, min_delta: 1.0e-3}}"
_PLATEAU = "{monitor: val/loss, patience: 3, min_delta: 1.0e-3, mode: min}"
_PLATEAU_KEYS = ("patience", "min_delta", "mode")


def parse_metric_trigger(argument: str, config: object) -> MetricTrigger:
    """Read a metric condition as it stands in YAML.

    Args:
        argument: The argument's name, for errors.
        config: `{monitor: ..., below: ...}`, `{monitor: ..., above: ...}` or
            `{monitor: ..., plateau: {patience: ..., min_delta: 0.0, mode: min}}`.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A key is missing, unknown, or in conflict with another.
    """
    condition = _mapping(argument, config)
    _known_keys(argument, condition, ("monitor", "below", "above", "plateau"))
    monitor = condition.get("monitor")
    if not isinstance(monitor, str) or not monitor:
        raise ValueError(
            f"{argument} needs 'monitor', the name of a logged metric: {_FORMS}. Got {config!r}."
        )
    kinds = [kind for kind in ("below", "above", "plateau") if condition.get(kind) is not None]
    if len(kinds) != 1:
        raise ValueError(f"{argument} needs exactly one of below, above, plateau: {_FORMS}. Got {config!r}.")
    if kinds == ["plateau"]:
        plateau = _mapping(f"{argument}.plateau", condition["plateau"])
        _known_keys(f"{argument}.plateau", plateau, _PLATEAU_KEYS)
        return _read_plateau(f"{argument}.plateau", monitor, plateau)
    [kind] = kinds
    threshold = number(f"{argument}.{kind}", condition[kind])
    if math.isnan(threshold) or threshold == (-math.inf if kind == "below" else math.inf):
        raise ValueError(f"{argument}: no value is {kind} {threshold}, so this would never happen.")
    return MetricBelow(monitor, **{kind: threshold})


def parse_plateau(argument: str, config: object) -> Plateau:
    """Read a plateau as it stands in YAML, for arguments that accept only a plateau.

    Args:
        argument: The argument's name, for errors.
        config: `{monitor: ..., patience: ..., min_delta: 0.0, mode: min}`.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A key is missing or unknown.
    """
    plateau = _mapping(argument, config, _PLATEAU)
    _known_keys(argument, plateau, ("monitor", *_PLATEAU_KEYS))
    monitor = plateau.get("monitor")
    if not isinstance(monitor, str) or not monitor:
        raise ValueError(
            f"{argument} needs 'monitor', the name of a logged metric: {_PLATEAU}. Got {config!r}."
        )
    return _read_plateau(argument, monitor, plateau)


def _read_plateau(argument: str, monitor: str, plateau: Mapping[str, object]) -> Plateau:
    patience = count(f"{argument}.patience", plateau.get("patience"))
    if not patience:
        raise ValueError(
            f"{argument} needs 'patience', a number of checks of at least 1. Got {dict(plateau)!r}."
        )
    min_delta = number(f"{argument}.min_delta", plateau.get("min_delta", 0.0))
    if not 0 <= min_delta < math.inf:
        raise ValueError(f"{argument}.min_delta must be at least 0 and finite. Got {min_delta}.")
    mode = plateau.get("mode", "min")
    if mode not in ("min", "max"):
        raise ValueError(f"{argument}.mode must be 'min' (lower is better) or 'max'. Got {mode!r}.")
    return Plateau(monitor, patience, min_delta, mode)


def _mapping(argument: str, config: object, forms: str = _FORMS) -> Mapping[str, object]:
    if not isinstance(config, Mapping):
        raise TypeError(f"{argument} must be a mapping such as {forms}. Got {config!r}.")
    return config


def _known_keys(argument: str, config: Mapping[str, object], known: Sequence[str]) -> None:
    unknown = [key for key in config if key not in known]
    if unknown:
        raise ValueError(f"{argument} has no key {', '.join(map(repr, unknown))}. Keys: {', '.join(known)}.")


@dataclass(frozen=True)
class LossOrWait:
    """Fires when a loss is low enough or after a maximum wait; used for queues, one entry after another.

    Attributes:
        monitor: The name under which the loss is logged.
        trigger_loss: Fires once the latest value is strictly below it; `math.inf` fires at once, without a
            value; with None the value never matters.
        max_wait: Fires this many optimizer steps after the previous entry, whatever the loss; 0 fires at
            once; None sets no limit.
    """

    monitor: str
    trigger_loss: float | None
    max_wait: int | None = None

    @property
    def is_immediate(self) -> bool:
        """Whether it only waits for its turn."""
        return self.trigger_loss == math.inf or self.max_wait == 0

    @property
    def looks_at_loss(self) -> bool:
        """Whether the value of the loss matters."""
        return self.trigger_loss is not None and not self.is_immediate

    def reason(self, value: float | None, num_steps: int) -> str | None:
        """Why it fires, for the log; None while it does not.

        Args:
            value: The latest value of the loss; None before the first. A NaN meets no condition.
            num_steps: Optimizer steps since the previous entry.
        """
        if self.is_immediate:
            return "at once"
        if value is not None and self.trigger_loss is not None and value < self.trigger_loss:
            return f"{self.monitor} {value:.4g} < {self.trigger_loss:g}"
        if self.max_wait is not None and num_steps >= self.max_wait:
            return f"waited {self.max_wait} step{'s' * (self.max_wait != 1)}"
        return None

    def deadline(self, since: int) -> int | None:
        """The optimizer step at which it fires at the latest; None without such a limit."""
        return None if self.max_wait is None else since + self.max_wait

    def __str__(self) -> str:
        if self.is_immediate:
            return "at once"
        loss = "" if self.trigger_loss is None else f"{self.monitor} < {self.trigger_loss:g}"
        wait = "" if self.max_wait is None else f"{self.max_wait} steps"
        return f"waits for {' or '.join(filter(None, (loss, wait)))}"


def parse_loss_or_wait(argument: str, config: Mapping[str, object], monitor: str) -> LossOrWait:
    """Read `trigger_loss` and `max_wait_iters` of an entry as they stand in YAML or JSON.

    Args:
        argument: The entry's name, for errors.
        config: The entry; a missing key and one that is null mean the same. Other keys are ignored.
        monitor: The metric to compare with `trigger_loss`.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: Neither is given, or it could never fire.
    """
    loss, wait = config.get("trigger_loss"), config.get("max_wait_iters")
    max_wait = bound(f"{argument}.max_wait_iters", wait)
    if isinstance(loss, str) and loss.strip("+-.").lower() in ("inf", "infinity"):
        raise TypeError(f"{argument}.trigger_loss: write .inf in YAML, Infinity in JSON. Got {loss!r}.")
    trigger_loss = None if loss is None else number(f"{argument}.trigger_loss", loss)
    if trigger_loss is None and max_wait is None:
        raise ValueError(
            f"{argument} does not say when. Give trigger_loss (.inf for at once), max_wait_iters, or both."
        )
    if trigger_loss is not None and math.isnan(trigger_loss):
        raise ValueError(f"{argument}.trigger_loss must be a number to compare with, not NaN.")
    if trigger_loss == -math.inf and max_wait is None:
        raise ValueError(f"{argument}: no loss is below -.inf, so this would never happen.")
    return LossOrWait(monitor, trigger_loss, max_wait)
