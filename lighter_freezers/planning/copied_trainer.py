"""A Trainer for rehearsals: like the user's, but it logs nothing, saves nothing, and trains a copy."""

import copy
import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lighter_freezers._lightning import Callback
from lighter_freezers.engine import ledger
from lighter_freezers.engine.engine import EngineCallback
from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of
from lighter_freezers.planning.rehearsal import Rehearsal

__all__ = ["hushed", "rehearse", "untouched_randomness"]

_HOLDER = "plan"
_OWN = str(Path(__file__).parents[1])


def rehearse(
    trainer: TrainerLike,
    model: nn.Module,
    datamodule: Any,  # of either namespace, or None
    train_dataloaders: object,
    num_timed: int,
    *,
    has_rules: bool = True,
    progress: Callable[[int], object] = lambda step: None,
) -> Rehearsal:
    """Rehearse the run of a Trainer once, on a copy of the model.

    Args:
        trainer: The user's. It is only read.
        model: The LightningModule; it is copied.
        datamodule: For the batches, or None.
        train_dataloaders: The same, instead of a datamodule.
        num_timed: Steps to time in each phase.
        has_rules: Whether the Trainer's callbacks of this package take part.
        progress: Called with the step at which a phase starts.
    """
    rehearsal = Rehearsal(trainer, num_timed, progress)
    copied = copy.deepcopy(model)
    for original, twin in zip(model.parameters(), copied.parameters(), strict=True):
        _hold_alike(original, twin)
    _keep_own_callbacks(copied)
    engine_callbacks = [
        copy.deepcopy(each)
        for each in callbacks_of(trainer)
        if has_rules and isinstance(each, EngineCallback)
    ]
    staged = _staged(trainer, [rehearsal, *engine_callbacks])
    owner = getattr(datamodule, "trainer", None)
    try:
        if datamodule is not None:
            staged.fit(copied, datamodule=datamodule)
        else:
            staged.fit(copied, train_dataloaders=train_dataloaders)
    finally:
        if datamodule is not None:
            datamodule.trainer = owner
    return rehearsal


def _hold_alike(original: nn.Parameter, twin: nn.Parameter) -> None:
    """Record in the ledger why a copied parameter is frozen if not by the user: a hold or an earlier run."""
    if original.requires_grad or ledger.is_user_frozen(original):
        return
    ledger.thaw([twin], _HOLDER)
    for holder in ledger.holders(original):
        ledger.hold([twin], holder)
    if not ledger.holders(original):
        left = ledger.Hold([twin], _HOLDER)
        left.take()
        left.abandon()


def _keep_own_callbacks(model: Any) -> None:  # a method is replaced
    """Keep the module's own callbacks, except those that write files or stop runs."""
    configure = model.configure_callbacks

    def configure_callbacks() -> list[EngineCallback]:
        brought = configure()
        several = brought if isinstance(brought, Sequence) else [brought]
        return [callback for callback in several if isinstance(callback, EngineCallback)]

    model.configure_callbacks = configure_callbacks


def _staged(trainer: TrainerLike, callbacks: Sequence[Callback]) -> Any:  # a Trainer to fit with
    """The rehearsal's Trainer: of the same namespace, on one device."""
    kind = next(each for each in type(trainer).__mro__ if each.__name__ == "Trainer")
    device = trainer.strategy.root_device
    clip = trainer.gradient_clip_algorithm
    return kind(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1 if device.index is None or device.type == "cpu" else [device.index],
        precision=trainer.precision,
        max_steps=trainer.max_steps,
        max_epochs=trainer.max_epochs,
        limit_train_batches=trainer.limit_train_batches,
        overfit_batches=getattr(trainer, "overfit_batches", 0.0),  # Lightning does not declare it
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=None if clip is None else clip.value,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Restore all random-number generators at the end; inside, they are seeded the same every time."""
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def hushed() -> Iterator[list[str]]:
    """Silence logging and warnings during the rehearsal, and collect this package's own warnings."""
    said: list[str] = []
    ours = logging.getLogger("lighter_freezers")
    others = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning")]
    levels = [(logger, logger.level) for logger in others]
    state = ours.level, ours.handlers, ours.propagate
    collector = _Collector(said)
    for logger in others:
        logger.setLevel(logging.ERROR)
    ours.handlers, ours.propagate = [collector], False
    ours.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            yield said
            said += [str(each.message) for each in raised if _OWN in each.filename]
    finally:
        for logger, level in levels:
            logger.setLevel(level)
        level, ours.handlers, ours.propagate = state
        ours.setLevel(level)


class _Collector(logging.Handler):
    """Collects the messages of log records."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())
