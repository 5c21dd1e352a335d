"""Passes logged metrics to rules and actions that wait for one: each value once, equal on every rank."""

import re
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Protocol

import torch

from lighter_freezers._log import log
from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.selection.names import closest_names

__all__ = ["TRAINING_LOSS", "MetricWatch", "Watcher"]

TRAINING_LOSS = "training_loss"  # the loss that `training_step` returns; `training_loss.py` averages it


class Watcher(Protocol):
    """A rule or an action that may wait for metrics."""

    @property
    def title(self) -> str:
        """Names it in errors."""

    @property
    def monitor_argument(self) -> str:
        """What the user calls the argument that names the metrics."""

    @property
    def monitors(self) -> frozenset[str]:
        """The metrics it waits for now."""

    def observe(self, monitor: str, value: float) -> bool:
        """Record a value; returns whether a change may be due now."""


class MetricWatch:
    """The metrics that rules and actions of one fit wait for.

    Args:
        watchers: All rules and actions; those that wait for nothing are skipped.
    """

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers
        self._before_validation: dict[str, torch.Tensor] = {}
        self._of_validation: set[str] = set()  # the metrics logged by validation
        self._has_validated = False
        self.validated_at: int | None = None  # optimizer step of the last validation that was read

    @property
    def _waiting(self) -> list[tuple[Watcher, str]]:
        """The watchers that wait for each logged metric now."""
        waiting = [(watcher, monitor) for watcher in self._watchers for monitor in sorted(watcher.monitors)]
        return [(watcher, monitor) for watcher, monitor in waiting if monitor != TRAINING_LOSS]

    def note_validation_start(self, trainer: TrainerLike) -> None:
        """Remember what was logged before, to tell afterwards which metrics validation logs."""
        if self._waiting:
            self._before_validation = trainer_clock.metrics(trainer)

    def observe_validation(self, trainer: TrainerLike) -> bool:
        """Pass on the metrics of a validation that has just ended.

        Returns:
            Whether a trigger fired.
        """
        self.validated_at = trainer_clock.moment(
            trainer
        ).optimizer_step  # a resumed run may wait for something else
        if not self._waiting:
            return False
        self._has_validated = True
        before, now = self._before_validation, trainer_clock.metrics(trainer)
        self._of_validation |= {name for name, value in now.items() if value is not before.get(name)}
        return self._observe(
            trainer, {name: value for name, value in now.items() if name in self._of_validation}
        )

    def observe_epoch(self, trainer: TrainerLike) -> bool:
        """Pass on the training metrics of an epoch that has just ended.

        Returns:
            Whether a trigger fired.

        Raises:
            RuntimeError: A metric was logged neither here nor in validation.
        """
        if not self._waiting:
            return False
        now = trainer_clock.metrics(trainer)
        if self._has_validated or not trainer.enable_validation:
            self._refuse_unknown(list(now))
        return self._observe(
            trainer, {name: value for name, value in now.items() if name not in self._of_validation}
        )

    def warn_of_lost_validation(self, trainer: TrainerLike, batch_idx: int) -> None:
        """Warn if a checkpoint saved right before a validation makes the resumed run skip that validation.

        Lightning then continues with the next batch: the rules miss a value that an uninterrupted run has
        seen.
        """
        step = trainer_clock.moment(trainer).optimizer_step
        was_due = trainer_clock.validation_was_due(trainer, batch_idx)
        if self._waiting and was_due and self.validated_at != step:
            waiting = ", ".join(dict.fromkeys(watcher.title for watcher, _ in self._waiting))
            warnings.warn(
                f"The checkpoint was saved at step {step}, right before a validation, which Lightning does "
                f"not repeat: {waiting} misses this value. Save checkpoints after validation "
                "(ModelCheckpoint without every_n_train_steps) to resume exactly.",
                stacklevel=2,
            )

    def _observe(self, trainer: TrainerLike, fresh: dict[str, torch.Tensor]) -> bool:
        waiting = self._waiting
        monitors = dict.fromkeys(monitor for _, monitor in waiting)
        values = {name: trainer_clock.reduced(trainer, fresh[name]) for name in monitors if name in fresh}
        fired = [
            watcher.observe(monitor, values[monitor]) for watcher, monitor in waiting if monitor in values
        ]
        return any(fired)

    def check_sanity(self, trainer: TrainerLike) -> None:
        """After the sanity check: a monitor that is named like a validation metric should be one.

        Any other name is a warning, because a module may log it in real validations only.

        Raises:
            RuntimeError: It is all but the same as one of them.
        """
        names = list(trainer_clock.metrics(trainer))
        families = {_family(name) for name in names}
        for watcher, monitor in self._waiting:
            if monitor not in names and _family(monitor) in families:
                if get_close_matches(monitor, names, 1, cutoff=0.93):
                    raise RuntimeError(_unknown(watcher, monitor, names))
                log.warning("%s", _unknown(watcher, monitor, names, "not logged in the sanity check"))

    def _refuse_unknown(self, names: list[str]) -> None:
        for watcher, monitor in self._waiting:
            if monitor not in names:
                raise RuntimeError(_unknown(watcher, monitor, names))


def _family(name: str) -> str:
    """`val` of `val/loss` and of `val_loss`."""
    return re.split(r"[/_]", name, maxsplit=1)[0]


def _unknown(watcher: Watcher, monitor: str, names: list[str], fact: str = "never logged") -> str:
    closest = closest_names(monitor, names, 3)
    return (
        f"{watcher.title} waits for the metric '{monitor}', but it was {fact}. "
        f"Closest: {', '.join(closest) or 'none'}. Logged: {', '.join(sorted(names)) or 'nothing'}. "
        f"Correct {watcher.monitor_argument}, or call self.log('{monitor}', ...) in the validation step."
    )
