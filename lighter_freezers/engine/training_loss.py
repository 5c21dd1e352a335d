"""The training loss: of one batch, averaged over several, and running means read one step late."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.engine.triggers import Moment

__all__ = ["StepLoss", "TrainingLoss", "loss_of", "mean_loss"]


def loss_of(outputs: object, window: int) -> torch.Tensor | None:
    """The whole loss in the outputs of a batch, not read from the device; None for a skipped batch.

    Args:
        outputs: What the hook after a batch gets.
        window: Batches in the accumulation window, by which Lightning has divided the loss.
    """
    loss = outputs.get("loss") if isinstance(outputs, (dict, Mapping)) else outputs  # one is quick to tell
    if not isinstance(loss, torch.Tensor):
        return None
    loss = loss.detach() if loss.requires_grad else loss  # Lightning's is detached already
    return loss if window == 1 else loss.float() * window


def mean_loss(trainer: TrainerLike, losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of batch losses over all ranks, on the device. Every rank has to call this.

    Args:
        trainer: The Trainer.
        losses: As `loss_of` returned them.
    """
    mean = torch.stack([loss.to(trainer.strategy.root_device, torch.float32) for loss in losses]).mean()
    return torch.as_tensor(trainer.strategy.reduce(mean, reduce_op="mean"))


class StepLoss:
    """The mean loss of the last optimizer step in this process, never read on the host.

    Args:
        optimizer_step: Steps done so far.
        saved: The loss of the last of them, where a run goes on; None where that is not known.
        device: Where that loss is to be; None for the CPU.
    """

    def __init__(
        self, optimizer_step: int, saved: float | None = None, device: torch.device | None = None
    ) -> None:
        self.value = None if saved is None else torch.tensor(saved, device=device)
        self._losses: list[torch.Tensor] = []
        self._step = optimizer_step

    def note(self, loss: torch.Tensor | None, optimizer_step: int) -> None:
        """Record the loss of one batch; after the last of a window `value` is their mean."""
        if loss is not None:
            self._losses.append(loss)
        if self._losses and optimizer_step != self._step:
            self.value = torch.stack(self._losses).float().mean()
            self._losses, self._step = [], optimizer_step

    def mean_over_ranks(self, trainer: TrainerLike) -> float | None:
        """What all ranks have together, read on the host; None before the first loss of any."""
        known = torch.zeros(2) if self.value is None else torch.stack([self.value.cpu(), torch.ones(())])
        total, share = trainer_clock.mean_over_ranks(trainer, known).tolist()
        return total / share if share else None


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
    """Averages of the training loss over blocks of optimizer steps, the same on every rank.

    A batch costs one reference to an existing scalar. At the end of a block one mean is computed on the
    device, reduced over ranks and copied to the host without waiting. It is read a step later.

    Args:
        num_steps: Optimizer steps in a block; those without a loss do not count.
        optimizer_step: Steps done so far.
    """

    def __init__(self, num_steps: int, optimizer_step: int) -> None:
        self._num_steps = num_steps
        self._losses: list[torch.Tensor] = []
        self._num_done = self._num_missing = 0  # steps with a loss, and batches without one since the last
        self._step, self._is_open = optimizer_step, False  # whether the step under way has a loss
        self._pending: list[_Average] = []

    @property
    def ready_step(self) -> int | None:
        """The optimizer step from which on the next average may be read."""
        return self._pending[0].ready_step if self._pending else None

    def note(self, loss: torch.Tensor | None, optimizer_step: int, window: int) -> bool:
        """Record the loss of one batch, without reading it; returns whether the block is full now.

        Args:
            loss: As `loss_of` returned it.
            optimizer_step: Steps done. An epoch's last window may be shorter than the others.
            window: Batches in the accumulation window.

        Raises:
            RuntimeError: A whole block had no loss.
        """
        if loss is None:  # `training_step` may skip a batch
            self._miss(window)
        else:
            self._losses.append(loss)
            self._num_missing, self._is_open = 0, True
        if optimizer_step != self._step:
            self._num_done += (optimizer_step - self._step) * self._is_open
            self._step, self._is_open = optimizer_step, False
        return self._num_done >= self._num_steps

    def _miss(self, window: int) -> None:
        self._num_missing += 1
        if self._num_missing >= self._num_steps * window:
            raise RuntimeError(
                "An operation waits for training_loss, but training_step gave no loss in "
                f"{self._num_missing} batches. Return it, or a dictionary with it under 'loss', or monitor a "
                "metric that is logged."
            )

    def close(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """Compute the mean of the block and start its copy to the host."""
        mean, arrival = mean_loss(trainer, self._losses), None
        if mean.is_cuda:
            mean = mean.to("cpu", non_blocking=True)  # into pinned memory
            arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrival.record()
        self._pending.append(_Average(mean, optimizer_step + 1, arrival))
        self._losses, self._num_done = [], 0

    def take(self, moment: Moment) -> list[float]:
        """The averages that are ready, each returned once."""
        ready = [each for each in self._pending if each.ready_step <= moment.optimizer_step]
        self._pending = self._pending[len(ready) :]
        return [each.read() for each in ready]

    def state(self) -> dict[str, object]:
        """The state for a checkpoint, in plain types; this reads the device."""
        return {
            "losses": torch.stack(self._losses).tolist() if self._losses else [],  # one transfer
            "num_done": self._num_done,
            "is_open": self._is_open,
            "averages": [[each.read(), each.ready_step] for each in self._pending],
        }

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned."""
        windows = state.get("windows")  # an older checkpoint has losses as Lightning divided them
        self._losses = [torch.tensor(loss) for loss in state["losses"]]
        if windows is None:
            self._num_done, self._is_open = state["num_done"], state["is_open"]
        else:
            done = sum(1 / window for window in windows) + 1e-6
            self._num_done, self._is_open = int(done), done % 1 > 1e-5
            self._losses = [loss * window for loss, window in zip(self._losses, windows, strict=True)]
        self._pending = [_Average(torch.tensor(value), step) for value, step in state["averages"]]
