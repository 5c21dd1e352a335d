"""Shows logged metrics to the rules and acts that wait for one, each value once, the same on every rank."""

import difflib
import re
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from lighter_freezers.engine import trainer_clock

__all__ = ["TRAINING_LOSS", "MetricWatch", "Watcher"]

TRAINING_LOSS = "training_loss"  # stands for what `training_step` returns, and is looked at elsewhere


class Watcher(Protocol):
    """Something that may wait for metrics."""

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
        """Take note of a value; whether something may change now."""


class MetricWatch:
    """The metrics that are waited for in one fit.

    Args:
        watchers: All rules and acts; those that wait for nothing are passed over.
    """

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers
        self._before_validation: dict[str, torch.Tensor] = {}
        self._of_validation: set[str] = set()  # metrics that validation logs
        self._has_validated = False
        self.validated_at: int | None = None  # optimizer step of the last validation that was looked at

    @property
    def _waiting(self) -> list[tuple[Watcher, str]]:
        """Who waits for which logged metric now."""
        waiting = [(watcher, monitor) for watcher in self._watchers for monitor in sorted(watcher.monitors)]
        return [(watcher, monitor) for watcher, monitor in waiting if monitor != TRAINING_LOSS]

    def note_validation_start(self, trainer: Any) -> None:
        """Remember what was logged before, to know afterwards which metrics validation logs."""
        if self._waiting:
            self._before_validation = trainer_clock.metrics(trainer)

    def observe_validation(self, trainer: Any) -> bool:
        """Show the metrics of a validation that has just ended.

        Returns:
            Whether a trigger fired.
        """
        if not self._waiting:
            return False
        self._has_validated = True
        self.validated_at = trainer_clock.moment(trainer).optimizer_step
        before, now = self._before_validation, trainer_clock.metrics(trainer)
        self._of_validation |= {name for name, value in now.items() if value is not before.get(name)}
        return self._observe(
            trainer, {name: value for name, value in now.items() if name in self._of_validation}
        )

    def observe_epoch(self, trainer: Any) -> bool:
        """Show the training metrics of an epoch that has just ended.

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

    def warn_of_lost_validation(self, trainer: Any, batch_idx: int) -> None:
        """Say so where a checkpoint from right before a validation makes the resumed run go without it.

        Lightning goes on with the next batch then: the rules miss a value that an uninterrupted run has seen.
        """
        step = trainer_clock.moment(trainer).optimizer_step
        was_due = trainer_clock.validation_was_due(trainer, batch_idx)
        if self._waiting and was_due and self.validated_at != step:
            waiting = ", ".join(dict.fromkeys(watcher.title for watcher, _ in self._waiting))
            warnings.warn(
                f"The checkpoint was saved at step {step}, right before a validation, and Lightning does not "
                f"make up for it: {waiting} goes without this value. Save checkpoints after validation "
                "(ModelCheckpoint without every_n_train_steps) to resume exactly.",
                stacklevel=2,
            )

    def _observe(self, trainer: Any, fresh: dict[str, torch.Tensor]) -> bool:
        waiting = self._waiting
        monitors = dict.fromkeys(monitor for _, monitor in waiting)
        values = {name: trainer_clock.reduced(trainer, fresh[name]) for name in monitors if name in fresh}
        fired = [
            watcher.observe(monitor, values[monitor]) for watcher, monitor in waiting if monitor in values
        ]
        return any(fired)

    def refuse_misspelt(self, trainer: Any) -> None:
        """After the sanity check: a monitor that begins like a validation metric must be one of them.

        Raises:
            RuntimeError: It is none of them.
        """
        names = list(trainer_clock.metrics(trainer))
        families = {_family(name) for name in names}
        for watcher, monitor in self._waiting:
            if monitor not in names and _family(monitor) in families:
                raise RuntimeError(_unknown(watcher, monitor, names))

    def _refuse_unknown(self, names: list[str]) -> None:
        for watcher, monitor in self._waiting:
            if monitor not in names:
                raise RuntimeError(_unknown(watcher, monitor, names))


def _family(name: str) -> str:
    """`val` of `val/loss` and of `val_loss`."""
    return re.split(r"[/_]", name, maxsplit=1)[0]


def _unknown(watcher: Watcher, monitor: str, names: list[str]) -> str:
    closest = difflib.get_close_matches(monitor, names, n=3, cutoff=0.0)
    return (
        f"{watcher.title} waits for the metric '{monitor}', but nobody logged it. "
        f"Closest: {', '.join(closest) or 'none'}. Logged: {', '.join(sorted(names)) or 'nothing'}. "
        f"Correct {watcher.monitor_argument}, or call self.log('{monitor}', ...) in the validation step."
    )
