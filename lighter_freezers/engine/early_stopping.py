"""Exhausted patience of the user's EarlyStopping ends a stage instead of the run; nothing else of it does.

While a check runs, the patience is out of reach; what it has counted then decides. So `should_stop` is never
set, whatever the order of the callbacks, and non-finite values, divergence, a threshold that is reached and
other code stop the run as ever.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from lighter_freezers._log import log
from lighter_freezers.engine.trainer_clock import share_done, steps_per_epoch, validations_per_epoch
from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of, callbacks_of_kind
from lighter_freezers.engine.triggers import Plateau

__all__ = ["EARLY_STOPPING", "OutOfPatience", "PatienceWatch", "early_end", "say_unmet"]

EARLY_STOPPING = "early_stopping"  # what waits for it names this as its metric
_HOOKS = ("on_validation_end", "on_train_epoch_end")


@dataclass(frozen=True)
class OutOfPatience:
    """Fires when EarlyStopping would stop the run because nothing improved."""

    monitor: str = EARLY_STOPPING

    def __str__(self) -> str:
        return "EarlyStopping is out of patience"


class _EarlyStoppingLike(Protocol):
    monitor: str
    patience: int
    min_delta: float  # below 0 where less is better
    wait_count: int
    best_score: Tensor
    mode: str
    _check_on_train_epoch_end: bool | None  # nothing public says it; None until its `setup`


def early_end(
    trainer: TrainerLike, plateaus: Sequence[Plateau], longest_stage: tuple[int, int]
) -> str | None:
    """Why an EarlyStopping may end the run before a stage is over; None if none may.

    Args:
        trainer: The Trainer.
        plateaus: Plateaus that alone end a stage. One loses to an EarlyStopping on the same metric that has
            no more patience.
        longest_stage: Epochs of the longest stage that nothing but its epochs ends, and steps of the longest
            one that nothing but its steps ends.
    """
    epochs, steps = longest_stage
    shares = (epochs, steps / (steps_per_epoch(trainer) or math.inf))  # both in epochs
    for each in callbacks_of_kind(callbacks_of(trainer), "EarlyStopping"):
        stopping = cast("_EarlyStoppingLike", each)
        limit, margin = stopping.patience, abs(stopping.min_delta)
        said = f"EarlyStopping ends the run after {limit} checks of {stopping.monitor} without progress"
        for plateau in plateaus:
            needed, least = plateau.patience, plateau.min_delta
            is_same = (plateau.monitor, plateau.mode) == (
                stopping.monitor.removesuffix("/epoch"),
                stopping.mode,
            )
            if is_same and margin >= least and limit <= needed:
                return f"{said}, and a stage ends after {needed}"
        is_at_end = bool(stopping._check_on_train_epoch_end)  # also set by EarlyStopping's own `setup`
        num_checks = [share if is_at_end else share * validations_per_epoch(trainer) for share in shares]
        for number, unit, checks in zip(longest_stage, ("epochs", "steps"), num_checks, strict=True):
            if limit < checks:
                return f"{said}, and a stage has {number} {unit}, which may bring none"
    return None


def say_unmet(trainer: TrainerLike, title: str, unmet: str, way_out: str, *, on_metric: bool) -> None:
    """Say, at the end of training, what a run did not come to: a warning where it was stopped.

    Args:
        trainer: The Trainer. A run that came to its end, be it as EarlyStopping gave up, may go on from its
            checkpoint: a line of the log, and nothing where steps and epochs told it before the first batch.
        title: What waited, such as a callback.
        unmet: What it waited for.
        way_out: What to write where an EarlyStopping was out of patience.
        on_metric: Whether a metric could have ended the wait.
    """
    if not trainer.is_global_zero:
        return
    if trainer.should_stop and share_done(trainer, 0.0) < 1:
        kind = callbacks_of_kind(callbacks_of(trainer), "EarlyStopping")
        ends = [cast("_EarlyStoppingLike", each) for each in kind]
        left = [each.patience - each.wait_count for each in ends]
        has_run_out = any(number <= 0 for number in left)
        log.warning(
            "%s: the run was stopped before %s%s", title, unmet, f". {way_out}" if has_run_out else ""
        )
    elif on_metric:
        log.info("%s: the run ended before %s", title, unmet)


class PatienceWatch:
    """Watches every EarlyStopping of one fit.

    Args:
        trainer: The Trainer.
        is_ending_stages: Whether exhausted patience ends the stage that is under way.
        on_exhausted: Called when it does, on all ranks.

    Raises:
        RuntimeError: The Trainer has no EarlyStopping.
    """

    def __init__(
        self, trainer: TrainerLike, is_ending_stages: Callable[[], bool], on_exhausted: Callable[[], object]
    ) -> None:
        found = callbacks_of_kind(callbacks_of(trainer), "EarlyStopping")
        if not found:
            raise RuntimeError(
                "until_early_stopping waits for the EarlyStopping of the Trainer, which has none. Add "
                "EarlyStopping(monitor=...) to its callbacks, or give until_metric with a plateau."
            )
        self._callbacks = [cast("_EarlyStoppingLike", each) for each in found]
        self._is_ending_stages, self._on_exhausted = is_ending_stages, on_exhausted
        for stopping in self._callbacks:
            for hook in _HOOKS:
                setattr(stopping, hook, self._watched(stopping, getattr(stopping, hook)))

    def renew(self, *, resets_best: bool) -> None:
        """A stage begins: patience is counted from 0, and if asked for so is what has to be beaten."""
        for stopping in self._callbacks:
            stopping.wait_count = 0
            if resets_best:
                stopping.best_score = torch.tensor(torch.inf if stopping.mode == "min" else -torch.inf)

    def remove(self) -> None:
        """Leave every EarlyStopping as it was."""
        for stopping in self._callbacks:
            for hook in _HOOKS:
                vars(stopping).pop(hook, None)

    def _watched(
        self, stopping: _EarlyStoppingLike, check: Callable[[TrainerLike, nn.Module], object]
    ) -> Callable[[TrainerLike, nn.Module], None]:
        def hook(trainer: TrainerLike, pl_module: nn.Module) -> None:
            if trainer.sanity_checking or not self._is_ending_stages():
                check(trainer, pl_module)
                return
            limit, waited = stopping.patience, stopping.wait_count
            stopping.patience = sys.maxsize
            try:
                check(trainer, pl_module)
            finally:
                stopping.patience = limit
            is_exhausted = stopping.wait_count > waited and stopping.wait_count >= limit
            if trainer.strategy.reduce_boolean_decision(is_exhausted, all=False):
                self._on_exhausted()

        return hook
