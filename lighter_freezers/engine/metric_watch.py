"""Passes logged metrics to rules and actions that wait for one: each value once, equal on every rank."""

import re
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Protocol

import torch

from lighter_freezers._log import log
from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.early_stopping import EARLY_STOPPING
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.selection.names import closest_names

__all__ = ["TRAINING_LOSS", "MetricWatch", "Watcher"]

TRAINING_LOSS = "training_loss"  # the loss that `training_step` returns; `training_loss.py` averages it
_NOT_LOGGED = (TRAINING_LOSS, EARLY_STOPPING)


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
        self._has_validated = self._is_cut = False  # cut: the run was resumed within this epoch
        self._validated_at: int | None = None  # optimizer step of the last validation that was read
        self._ended_at: int | None = None  # optimizer step of the last end of an epoch that was read
        self._is_at_end = False  # of an epoch, where this run resumes
        self._unread: SavedState = {}  # of a checkpoint: `epoch` and `values` of an end that was not read
        self._caught_up: set[str] = set()  # the metrics of such an end, read when training resumed

    @property
    def _waiting(self) -> list[tuple[Watcher, str]]:
        """The watchers that wait for each logged metric now."""
        waiting = [(watcher, monitor) for watcher in self._watchers for monitor in sorted(watcher.monitors)]
        return [(watcher, monitor) for watcher, monitor in waiting if monitor not in _NOT_LOGGED]

    def state(self, trainer: TrainerLike) -> dict[str, object]:
        """The state for a checkpoint, in plain types."""
        unread = self._unread or self._at_last_batch(trainer)
        return {"validated_at": self._validated_at, "epoch_metrics": unread}

    def _at_last_batch(self, trainer: TrainerLike) -> SavedState:
        """The training metrics of an epoch between its last batch and its end: a resumed run lacks them."""
        moment = trainer_clock.moment(trainer)
        if not self._waiting or not trainer.is_last_batch or self._ended_at == moment.optimizer_step:
            return {}
        now = {**trainer_clock.metrics(trainer), **trainer_clock.epoch_metrics(trainer)}
        values = self._read(trainer, now)
        return {"epoch": moment.epoch, "values": values} if values else {}

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned."""
        self._validated_at, self._unread = state["validated_at"], state.get("epoch_metrics", {})

    def catch_up(self, trainer: TrainerLike) -> None:
        """Pass on the metrics of an epoch that Lightning counts as ended when training resumes."""
        for title, monitor in {(each.title, name): None for each, name in self._waiting if trainer.barebones}:
            log.warning(
                "%s waits for the metric '%s', and Trainer(barebones=True) lets nothing log one: no value "
                "will meet the condition. Remove barebones",
                title,
                monitor,
            )
        self._is_at_end = trainer.is_last_batch  # as the loops were when the checkpoint was saved
        if self._unread and trainer_clock.moment(trainer).epoch > self._unread["epoch"]:
            self._observe(self._unread["values"])
            self._caught_up, self._unread = {*self._unread["values"]}, {}

    def note_validation_start(self, trainer: TrainerLike) -> None:
        """Remember what was logged before, to tell afterwards which metrics validation logs."""
        if self._waiting:
            self._before_validation = trainer_clock.metrics(trainer)

    def observe_validation(self, trainer: TrainerLike) -> bool:
        """Pass on the metrics of a validation that has just ended.

        Returns:
            Whether a trigger fired.
        """
        # also where nothing waits, since a resumed run may wait for something else
        self._validated_at = trainer_clock.moment(trainer).optimizer_step
        if not self._waiting:
            return False
        self._has_validated = True
        before, now = self._before_validation, trainer_clock.metrics(trainer)
        self._of_validation |= {name for name, value in now.items() if value is not before.get(name)}
        return self._observe(self._read(trainer, now, of_validation=True))

    def observe_epoch(self, trainer: TrainerLike) -> None:
        """Pass on the training metrics of an epoch that has just ended.

        Raises:
            RuntimeError: A metric was logged neither here nor in validation.
        """
        self._ended_at = trainer_clock.moment(trainer).optimizer_step
        before, self._unread = self._unread.get("values", {}), {}
        is_cut, self._is_cut = self._is_cut, False
        if not self._waiting:
            return
        now = trainer_clock.metrics(trainer)
        if self._has_validated or not trainer.enable_validation:
            fact = "" if trainer.enable_validation else ", and this run has no validation"
            self._refuse_unknown([*now, *before], f"never logged{fact}")
        if not trainer.is_last_batch:
            return  # the run stops within the epoch, and one that goes on has no value here
        if is_cut:
            self._warn_of_part(trainer)
        self._observe({**self._read(trainer, now), **before})

    def note_resumption(self, trainer: TrainerLike, batch_idx: int) -> None:
        """The first batch of a resumed run begins: warn of what the conditions have missed."""
        # Lightning counts on through the epochs of a stream that is resumed between two of them
        has_ended = self._is_at_end or not batch_idx
        self._is_cut = not has_ended
        self._warn_of_lost_validation(trainer, batch_idx, has_ended=has_ended)

    def _warn_of_part(self, trainer: TrainerLike) -> None:
        """Warn of means over a part of an epoch: Lightning's checkpoints do not contain the other part."""
        means = trainer_clock.epoch_metrics(trainer)
        waiting = [(watcher, monitor) for watcher, monitor in self._waiting if monitor in means]
        if waiting:
            titles = ", ".join(dict.fromkeys(watcher.title for watcher, _ in waiting))
            warnings.warn(
                f"The run was resumed within epoch {trainer_clock.moment(trainer).epoch}, so "
                f"{', '.join(sorted({monitor for _, monitor in waiting}))} is a value of the rest of this "
                f"epoch only, which {titles} reads now. Save checkpoints at the end of epochs, or wait for a "
                "metric of validation, to resume exactly.",
                stacklevel=2,
            )

    def _warn_of_lost_validation(self, trainer: TrainerLike, batch_idx: int, *, has_ended: bool) -> None:
        """Warn if a checkpoint saved right before a validation makes the resumed run skip that validation.

        Lightning then continues with the next batch: the rules miss a value that an uninterrupted run has
        seen.
        """
        step = trainer_clock.moment(trainer).optimizer_step
        was_due = trainer_clock.validation_was_due(trainer, batch_idx, has_ended=has_ended)
        missing = [watcher.title for watcher, monitor in self._waiting if monitor not in self._caught_up]
        if missing and was_due and self._validated_at != step:
            waiting = ", ".join(dict.fromkeys(missing))
            warnings.warn(
                f"The checkpoint was saved at step {step}, right before a validation, which Lightning does "
                f"not repeat: {waiting} misses this value. Save checkpoints after validation "
                "(ModelCheckpoint without every_n_train_steps) to resume exactly.",
                stacklevel=2,
            )

    def _read(
        self, trainer: TrainerLike, now: Mapping[str, torch.Tensor], *, of_validation: bool = False
    ) -> dict[str, float]:
        """The values that are waited for, of those logged in validation or of all others."""
        names = dict.fromkeys(monitor for _, monitor in self._waiting)
        fresh = [name for name in names if name in now and (name in self._of_validation) == of_validation]
        return {name: trainer_clock.reduced(trainer, now[name]) for name in fresh}

    def _observe(self, values: Mapping[str, float]) -> bool:
        waiting = self._waiting
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
        said = []
        for watcher, monitor in self._waiting:
            if monitor not in names and _family(monitor) in families:
                if get_close_matches(monitor, names, 1, cutoff=0.93):
                    raise RuntimeError(_unknown(watcher, monitor, names, "never logged"))
                said.append(_unknown(watcher, monitor, names, "not logged in the sanity check"))
        for sentence in dict.fromkeys(said):  # several rules may have one title
            log.warning("%s", sentence)

    def _refuse_unknown(self, names: list[str], fact: str) -> None:
        for watcher, monitor in self._waiting:
            if monitor not in names:
                raise RuntimeError(_unknown(watcher, monitor, names, fact))


def _family(name: str) -> str:
    """`val` of `val/loss` and of `val_loss`."""
    return re.split(r"[/_]", name, maxsplit=1)[0]


def _unknown(watcher: Watcher, monitor: str, names: list[str], fact: str) -> str:
    of_loaders = [name for name in names if name.partition("/dataloader_idx_")[0] == monitor]
    closest = sorted(of_loaders)[:3] or closest_names(monitor, names, 3)
    return (
        f"{watcher.title} waits for the metric '{monitor}', but it was {fact}. "
        f"Closest: {', '.join(closest) or 'none'}. Logged: {', '.join(sorted(names)) or 'nothing'}. "
        f"Correct {watcher.monitor_argument}, or call self.log('{monitor}', ...) in the validation step."
    )
