"""Shares of the run (`30%`) as steps and epochs: resolved once, when the Trainer knows its length."""

import warnings
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar, cast

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.arguments import Share
from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike

__all__ = ["RunShares"]

Value = TypeVar("Value")


class RunShares:
    """The length of one run, looked up for the first share of it; a resumed run keeps that of the first."""

    def __init__(self) -> None:
        self._trainer: TrainerLike | None = None
        self._is_manual = False
        self._totals: dict[str, int] = {}  # unit -> how many there are, of the units that shares count
        self._checked: set[str] = set()

    def begin(self, trainer: TrainerLike, model: nn.Module) -> "RunShares":
        """The Trainer knows how long it will train, and a checkpoint is loaded."""
        self._trainer, self._is_manual = trainer, not model.automatic_optimization
        return self

    def state(self) -> dict[str, object]:
        """The length of the run as it was resolved, for a checkpoint; empty without shares."""
        return {"run_length": dict(self._totals)} if self._totals else {}

    def remember(self, state: SavedState) -> None:
        """Go on with the length that the first run had."""
        self._totals, self._checked = dict(state.get("run_length", {})), set()

    def step_of(self, step: int | None, epoch: int | None) -> tuple[int, str | None]:
        """The optimizer step at which a step or an epoch is reached, or the run ends, whichever comes first.

        Returns:
            The step, and why it is unknown; None where it is not.
        """
        assert self._trainer is not None
        if reason := trainer_clock.unknown_length(self._trainer, is_manual=self._is_manual):
            return (trainer_clock.NEVER, reason) if step is None or epoch is not None else (step, None)
        last = trainer_clock.last_moment(self._trainer)
        per_epoch = trainer_clock.steps_per_epoch(self._trainer)
        if epoch is not None and per_epoch is None:
            return trainer_clock.NEVER, "the training data has no length (an iterable dataset)"
        assert last is not None
        bounds = [last.optimizer_step + 1] if step is None else [last.optimizer_step + 1, step]
        if epoch is not None and per_epoch is not None:
            bounds.append(epoch * per_epoch)
        return min(bounds), None

    def resolved(self, value: Value) -> Value:
        """The same value with steps and epochs in place of shares; it looks into tuples and dataclasses.

        Raises:
            RuntimeError: There is a share, and the length of the run is unknown; the message says why.
        """
        return cast("Value", self._resolved(value))

    def _resolved(self, value: object) -> object:
        if isinstance(value, Share):
            return max(1, round(value.percent / 100 * self._total(value)))
        if isinstance(value, tuple):
            parts = tuple(map(self._resolved, value))
            return parts if parts != value else value
        if is_dataclass(value) and not isinstance(value, type):
            before = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
            after = {name: self._resolved(each) for name, each in before.items()}
            return replace(value, **after) if after != before else value
        return value

    def _total(self, share: Share) -> int:
        assert self._trainer is not None
        if share.unit not in self._checked:
            self._checked.add(share.unit)
            now = _length(self._trainer, share, is_manual=self._is_manual)
            total = self._totals.setdefault(share.unit, now)
            if total != now:
                warnings.warn(
                    f"The run now has {now} {share.unit}s, and {total} when it began: {share} and all other "
                    f"shares remain those of {total} {share.unit}s. Write {share.unit}s to move them.",
                    stacklevel=2,
                )
            elif self._trainer.is_global_zero:
                log.info(
                    "the run has %d %ss: %s of it is %d", total, share.unit, share, self._resolved(share)
                )
        return self._totals[share.unit]


def _length(trainer: TrainerLike, share: Share, *, is_manual: bool) -> int:
    """How many steps or epochs the run has.

    Raises:
        RuntimeError: It is not known; the message says why.
    """
    if share.unit == "epoch" and (epochs := trainer_clock.num_epochs(trainer)) is not None:
        return epochs
    reason = trainer_clock.unknown_length(trainer, is_manual=is_manual)
    last = None if reason else trainer_clock.last_moment(trainer)
    if last is None:
        raise RuntimeError(
            f"{share} of the run is unknown: {reason}. Write a number of {share.unit}s instead."
        )
    if share.unit == "epoch" and last.epoch == trainer_clock.NEVER:
        raise RuntimeError(
            f"{share} of the epochs is unknown: the training data has no length (an iterable dataset), and "
            f"max_steps ends the run. Write {share} of the steps (until_step, every_n_steps), or a number of "
            "epochs instead."
        )
    return 1 + (last.optimizer_step if share.unit == "step" else last.epoch)
