"""The training loss: of one batch, averaged over several, and running means read one step late."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lighter_freezers.engine.trainer_clock import moment, window_length
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.engine.triggers import Moment

__all__ = ["StepLoss", "TrainingLoss", "loss_of", "mean_loss"]


def loss_of(outputs: object) -> torch.Tensor | None:
    """The loss in the outputs of a batch, not read from the device; None where `training_step` skipped it."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, torch.Tensor):
        return None
    return loss.detach() if loss.requires_grad else loss  # Lightning's is detached already


def mean_loss(
    trainer: TrainerLike, losses: Sequence[torch.Tensor], windows: Sequence[int] | None = None
) -> torch.Tensor:
    """The mean of batch losses over all ranks, on the device. Every rank has to call this.

    Lightning has divided each loss by the number of batches in an accumulation window; that is undone.

    Args:
        trainer: The Trainer.
        losses: As `loss_of` returned them.
        windows: For each of them, the number of batches in its window; None for the number in force now.
    """
    on_device = torch.stack([loss.to(trainer.strategy.root_device, torch.float32) for loss in losses])
    if windows is None or len({*windows}) == 1:
        mean = on_device.mean() * (windows[0] if windows else window_length(trainer))
    else:
        mean = (on_device * torch.tensor(windows, device=on_device.device)).mean()
    return torch.as_tensor(trainer.strategy.reduce(mean, reduce_op="mean"))


class StepLoss:
    """The mean loss of the last optimizer step in this process, never read on the host.

    Args:
        optimizer_step: Steps done so far.
    """

    def __init__(self, optimizer_step: int) -> None:
        self.value: torch.Tensor | None = None
        self._losses: list[torch.Tensor] = []
        self._step = optimizer_step

    def note(self, trainer: TrainerLike, outputs: object) -> None:
        """Record the loss of one batch; after the last of a window `value` is their mean."""
        loss, step = loss_of(outputs), moment(trainer).optimizer_step
        if loss is not None:
            self._losses.append(loss)
        if self._losses and step != self._step:
            self.value = torch.stack(self._losses).mean() * window_length(trainer)
            self._losses, self._step = [], step


@dataclass(frozen=True)
class _Average:
    """A mean on its way to the host."""

    value: torch.Tensor
    ready_step: int
    arrival: torch.cuda.Event | None = None

    def read(self) -> float:
        if self.arrival is not None:
            self.arrival.synchronize()
        return float(self.value)


class TrainingLoss:
    """Averages of the training loss over blocks of batches, the same on every rank.

    A batch costs one reference to an existing scalar. At the end of a block one mean is computed on the
    device, reduced over ranks and copied to the host without waiting. It is read a step later.

    Args:
        num_steps: Optimizer steps in a block.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._losses: list[torch.Tensor] = []
        self._windows: list[int] = []  # for each loss, the number of batches in its accumulation window
        self._num_missing = 0
        self._pending: list[_Average] = []

    @property
    def ready_step(self) -> int | None:
        """The optimizer step from which on the next average may be read."""
        return self._pending[0].ready_step if self._pending else None

    def note(self, outputs: object, window: int) -> bool:
        """Record the loss of one batch, without reading it; returns whether the block is full now.

        Args:
            outputs: What `training_step` returned.
            window: Batches in the accumulation window.

        Raises:
            RuntimeError: A whole block had no loss.
        """
        loss = loss_of(outputs)
        if isinstance(loss, torch.Tensor):
            self._losses.append(loss)
            self._windows.append(window)
            self._num_missing = 0
            if len(self._losses) < self._num_steps:
                return False
            return sum(1 / each for each in self._windows) > self._num_steps - 1e-6
        self._num_missing += 1  # `training_step` may skip a batch
        if self._num_missing >= self._num_steps * window:
            raise RuntimeError(
                "An operation waits for training_loss, but training_step gave no loss in "
                f"{self._num_missing} batches. Return it, or a dictionary with it under 'loss', or monitor a "
                "metric that is logged."
            )
        return False

    def close(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """Compute the mean of the block and start its copy to the host."""
        mean, arrival = mean_loss(trainer, self._losses, self._windows), None
        if mean.is_cuda:
            mean = mean.to("cpu", non_blocking=True)  # into pinned memory
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrival.record()
        self._pending.append(_Average(mean, optimizer_step + 1, arrival))
        self._losses, self._windows = [], []

    def take(self, moment: Moment) -> list[float]:
        """The averages that are ready, each returned once."""
        ready = [each for each in self._pending if each.ready_step <= moment.optimizer_step]
        self._pending = self._pending[len(ready) :]
        return [each.read() for each in ready]

    def state(self) -> dict[str, object]:
        """The state for a checkpoint, in plain types; this reads the device."""
        return {
            "losses": torch.stack(self._losses).tolist() if self._losses else [],  # one transfer
            "windows": list(self._windows),
            "averages": [[each.read(), each.ready_step] for each in self._pending],
        }

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned."""
        self._losses = [torch.tensor(loss) for loss in state["losses"]]
        self._windows = list(state["windows"])
        self._pending = [_Average(torch.tensor(value), step) for value, step in state["averages"]]
