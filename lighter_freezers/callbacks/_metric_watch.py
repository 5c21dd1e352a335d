"""Shows logged metrics to the rules that wait for one, each value once, the same on every rank."""

import difflib
import re
import warnings
from typing import Any

import torch

from lighter_freezers.callbacks import _clock
from lighter_freezers.callbacks._player import Player

__all__ = ["MetricWatch"]


class MetricWatch:
    """The metric triggers of one fit.

    Args:
        players: All rules; those without a trigger are passed over.
    """

    def __init__(self, players: list[Player]) -> None:
        self._waiting = [player for player in players if player.rule.trigger is not None]
        self._before_validation: dict[str, torch.Tensor] = {}
        self._of_validation: set[str] = set()  # metrics that validation logs
        self._has_validated = False
        self.validated_at: int | None = None  # optimizer step of the last validation that was looked at

    def note_validation_start(self, trainer: Any) -> None:
        """Remember what was logged before, to know afterwards which metrics validation logs."""
        if self._waiting:
            self._before_validation = _clock.metrics(trainer)

    def observe_validation(self, trainer: Any) -> bool:
        """Show the metrics of a validation that has just ended.

        Returns:
            Whether a trigger fired.
        """
        if not self._waiting:
            return False
        self._has_validated = True
        self.validated_at = _clock.moment(trainer).optimizer_step
        before, now = self._before_validation, _clock.metrics(trainer)
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
        now = _clock.metrics(trainer)
        if self._has_validated or not trainer.enable_validation:
            self._refuse_unknown(list(now))
        return self._observe(
            trainer, {name: value for name, value in now.items() if name not in self._of_validation}
        )

    def warn_of_lost_validation(self, trainer: Any, batch_idx: int) -> None:
        """Say so where a checkpoint from right before a validation makes the resumed run go without it.

        Lightning goes on with the next batch then: the rules miss a value that an uninterrupted run has seen.
        """
        step = _clock.moment(trainer).optimizer_step
        if self._waiting and _clock.validation_was_due(trainer, batch_idx) and self.validated_at != step:
            waiting = ", ".join(dict.fromkeys(player.rule.title for player in self._waiting))
            warnings.warn(
                f"The checkpoint was saved at step {step}, right before a validation, and Lightning does not "
                f"make up for it: {waiting} goes without this value. Save checkpoints after validation "
                "(ModelCheckpoint without every_n_train_steps) to resume exactly.",
                stacklevel=2,
            )

    def _observe(self, trainer: Any, fresh: dict[str, torch.Tensor]) -> bool:
        monitors = dict.fromkeys(_monitor(player) for player in self._waiting)
        values = {name: _clock.reduced(trainer, fresh[name]) for name in monitors if name in fresh}
        fired = [
            player
            for player in self._waiting
            if _monitor(player) in values and player.observe(values[_monitor(player)])
        ]
        self._waiting = [player for player in self._waiting if not player.history.has_fired]
        return bool(fired)

    def refuse_misspelt(self, trainer: Any) -> None:
        """After the sanity check: a monitor that begins like a validation metric must be one of them.

        Raises:
            RuntimeError: It is none of them.
        """
        names = list(_clock.metrics(trainer))
        families = {_family(name) for name in names}
        for player in self._waiting:
            monitor = _monitor(player)
            if monitor not in names and _family(monitor) in families:
                raise RuntimeError(_unknown(player, names))

    def _refuse_unknown(self, names: list[str]) -> None:
        for player in self._waiting:
            if _monitor(player) not in names:
                raise RuntimeError(_unknown(player, names))


def _monitor(player: Player) -> str:
    assert player.rule.trigger is not None
    return player.rule.trigger.monitor


def _family(name: str) -> str:
    """`val` of `val/loss` and of `val_loss`."""
    return re.split(r"[/_]", name, maxsplit=1)[0]


def _unknown(player: Player, names: list[str]) -> str:
    monitor = _monitor(player)
    closest = difflib.get_close_matches(monitor, names, n=3, cutoff=0.0)
    return (
        f"{player.rule.title} waits for the metric '{monitor}', but nobody logged it. "
        f"Closest: {', '.join(closest) or 'none'}. Logged: {', '.join(sorted(names)) or 'nothing'}. "
        f"Correct until_metric.monitor, or call self.log('{monitor}', ...) in the validation step."
    )
