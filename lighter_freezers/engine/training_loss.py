"""The training loss: what a batch returned, the mean of several, and averages read one step late."""

from collections.abc import Mapping, Sequence

import torch

from lighter_freezers.engine.trainer_clock import window_length
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.engine.triggers import Moment

__all__ = ["TrainingLoss", "loss_of", "mean_loss"]


def loss_of(outputs: object) -> torch.Tensor | None:
    """The unread loss in what `on_train_batch_end` is given; None where `training_step` skipped the batch."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss.detach() if isinstance(loss, torch.Tensor) else None


def mean_loss(trainer: TrainerLike, losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of the losses of batches over all ranks, unread. Every rank has to call this.

    Lightning has divided each loss by the number of batches in an accumulation window; that is undone.
    """
    on_device = [loss.to(trainer.strategy.root_device, torch.float32) for loss in losses]
    mean = torch.stack(on_device).mean() * window_length(trainer)
    return torch.as_tensor(trainer.strategy.reduce(mean, reduce_op="mean"))


class TrainingLoss:
    """Averages of the training loss over blocks of batches, the same on every rank.

    A batch costs one reference to an existing scalar. At the end of a block one mean is computed on the
    device, reduced over ranks and copied to the host without waiting. It is read a step later.

    Args:
        num_steps: Optimizer steps in a block.
        num_batches_per_step: Batches in an accumulation window. Its losses make one mean.
    """

    def __init__(self, num_steps: int, num_batches_per_step: int) -> None:
        self._num_batches = num_steps * num_batches_per_step
        self._losses: list[torch.Tensor] = []
        self._num_missing = 0
        self._average: torch.Tensor | None = None  # on its way to the host
        self._arrival: torch.cuda.Event | None = None
        self.ready_step: int | None = None  # the optimizer step from which on it may be read

    def note(self, outputs: object) -> bool:
        """Record the loss of one batch, without reading it; returns whether the block is full now.

        Raises:
            RuntimeError: A whole block had no loss.
        """
        loss = loss_of(outputs)
        if isinstance(loss, torch.Tensor):
            self._losses.append(loss)
            self._num_missing = 0
            return len(self._losses) >= self._num_batches
        self._num_missing += 1  # `training_step` may skip a batch
        if self._num_missing >= self._num_batches:
            raise RuntimeError(
                "An operation waits for training_loss, but training_step gave no loss in "
                f"{self._num_missing} batches. Return it, or a dictionary with it under 'loss', or monitor a "
                "metric that is logged."
            )
        return False

    def close(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """Compute the mean of the block and start its copy to the host."""
        mean = mean_loss(trainer, self._losses)
        if mean.is_cuda:
            mean = mean.to("cpu", non_blocking=True)  # into pinned memory
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record()
        self._average = mean
        self.ready_step = optimizer_step + 1
        self._losses = []

    def take(self, moment: Moment) -> float | None:
        """The average, returned once; None while there is none to read."""
        if self._average is None or self.ready_step is None or moment.optimizer_step < self.ready_step:
            return None
        value = self._on_host()
        self._average = self.ready_step = None
        return value

    def _on_host(self) -> float | None:
        if self._arrival is not None:
            self._arrival.synchronize()
        return None if self._average is None else float(self._average)

    def state(self) -> dict[str, object]:
        """The state for a checkpoint, in plain types; this reads the device."""
        return {
            "losses": torch.stack(self._losses).tolist() if self._losses else [],  # one transfer
            "average": self._on_host(),
            "ready_step": self.ready_step,
        }

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned."""
        self._losses = [torch.tensor(loss) for loss in state["losses"]]
        self._average = None if state["average"] is None else torch.tensor(state["average"])
        self.ready_step = state["ready_step"]
