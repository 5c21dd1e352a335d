"""The peers, where they are installed."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

__all__ = ["fts", "fts_in_phases", "lighter_freezer", "lighter_lines"]


def lighter_freezer() -> Any | None:
    """The class `Freezer` of lighter; None if it cannot be imported."""
    try:
        from lighter.callbacks.freezer import Freezer  # type: ignore[import-untyped]
    except ImportError:  # also where torchvision is missing, which lighter.callbacks wants
        return None
    from loguru import logger

    logger.remove()  # lighter's Freezer formats its lines for every sink; benchmarks add one of their own
    return Freezer


@contextmanager
def lighter_lines() -> Iterator[list[str]]:
    """Format what lighter logs, as its plain default sink would, and keep it."""
    from loguru import logger

    lines: list[str] = []
    sink = logger.add(lines.append)
    try:
        yield lines
    finally:
        logger.remove(sink)


def fts() -> Any | None:
    """The class `FinetuningScheduler`; None if it is not installed."""
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            from finetuning_scheduler import FinetuningScheduler
    except ImportError:
        return None
    return FinetuningScheduler


def fts_in_phases(scheduler: Any, phases: Sequence[Sequence[str]], epochs_each: int) -> Any:
    """A FinetuningScheduler that thaws one phase after the other, each for some epochs."""
    schedule = {
        index: {"params": list(names), "max_transition_epoch": epochs_each * (index + 1)}
        for index, names in enumerate(phases)
    }
    return scheduler(ft_schedule=schedule, epoch_transitions_only=True, restore_best=False)
