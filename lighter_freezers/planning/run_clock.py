"""The clock of a rehearsal: it counts all batches of a run, few of which are trained."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lighter_freezers.engine.trainer_like import TrainerLike

__all__ = ["RunClock", "RunLength", "run_length"]


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Attributes:
        batches_per_epoch: Of one process; None where the loader has no length.
        window: Batches in one accumulation window.
        max_steps: Optimizer steps, or -1 for no limit.
        max_epochs: Epochs, or -1 for no limit.
    """

    batches_per_epoch: int | None
    window: int
    max_steps: int
    max_epochs: int

    @property
    def windows_per_epoch(self) -> int | None:
        """Accumulation windows; the last one of an epoch may be short."""
        return None if self.batches_per_epoch is None else math.ceil(self.batches_per_epoch / self.window)


def run_length(trainer: TrainerLike, num_batches: float, loader: object) -> RunLength:
    """How long a Trainer would train.

    Args:
        trainer: The user's Trainer.
        num_batches: Batches of an epoch with a single process.
        loader: The loader of these batches.

    Raises:
        ValueError: The run has no end.
    """
    if trainer.world_size > 1:
        num_batches = _share(loader, trainer.world_size, trainer.limit_train_batches)
    per_epoch = None if math.isinf(num_batches) else int(num_batches)
    max_epochs = 1000 if trainer.max_epochs is None else int(trainer.max_epochs)
    if trainer.max_steps == -1 and (max_epochs == -1 or per_epoch is None):
        raise ValueError(
            "This run has no end, so there is no plan of it. Say how long it is: trainer::max_steps=1000."
        )
    return RunLength(per_epoch, int(trainer.accumulate_grad_batches), int(trainer.max_steps), max_epochs)


def _share(loader: Any, world_size: int, limit: float) -> float:  # a loader of any kind
    """Batches of one of several processes: a distributed sampler divides them, and repeats some."""
    try:
        share = float(math.ceil(len(loader) / world_size))
    except TypeError:  # an iterable dataset
        share = math.inf
    return min(share, limit) if isinstance(limit, int) else share * limit


@dataclass
class RunClock:
    """The position of the rehearsal in the run.

    Attributes:
        step: Optimizer steps done.
        epoch: The epoch.
        batch_idx: The batch in it.
        steps_per_window: Optimizer steps that one accumulation window makes: 1 with one optimizer.
    """

    step: int = 0
    epoch: int = 0
    batch_idx: int = 0
    steps_per_window: int = field(default=1)

    def batches(self, length: RunLength) -> Iterator[bool]:
        """Count batch by batch to the end of the run.

        Yields:
            Whether an epoch starts with this batch.
        """
        per_epoch = math.inf if length.batches_per_epoch is None else length.batches_per_epoch
        while True:
            self.batch_idx += 1
            is_epoch_over = self.batch_idx >= per_epoch
            if is_epoch_over or self.batch_idx % length.window == 0:
                self.step += self.steps_per_window
            if length.max_steps != -1 and self.step >= length.max_steps:
                return
            if is_epoch_over:
                if length.max_epochs != -1 and self.epoch + 1 >= length.max_epochs:
                    return
                self.epoch, self.batch_idx = self.epoch + 1, 0
            yield is_epoch_over
