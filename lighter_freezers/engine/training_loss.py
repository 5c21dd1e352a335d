"""The mean training loss of a run of batches: kept on the device, read one optimizer step late."""

from collections.abc import Mapping
from typing import Any

import torch

from lighter_freezers.engine.triggers import Moment

__all__ = ["TrainingLoss"]


class TrainingLoss:
    """Averages of the training loss over blocks of batches, the same on every rank.

    A batch costs one reference to a scalar that is there anyway. At the end of a block one mean is taken, on
    the device, reduced over ranks and sent to the host without waiting for it. It is read a step later.

    Args:
        num_steps: Optimizer steps in a block.
        num_batches_per_step: Batches in an accumulation window. Lightning divides each loss by it.
    """

    def __init__(self, num_steps: int, num_batches_per_step: int) -> None:
        self._num_batches = num_steps * num_batches_per_step
        self._scale = num_batches_per_step
        self._losses: list[torch.Tensor] = []
        self._num_missing = 0
        self._average: torch.Tensor | None = None  # on its way to the host
        self._arrival: torch.cuda.Event | None = None
        self.ready_step: int | None = None  # the optimizer step from which on it may be read

    def note(self, outputs: Any) -> bool:
        """Keep the loss of one batch, without reading it; whether the block is full now.

        Raises:
            RuntimeError: For a whole block there was no loss.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
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

    def close(self, trainer: Any, optimizer_step: int) -> None:
        """Take the mean of the block and send it off."""
        losses = [loss.to(trainer.strategy.root_device, torch.float32) for loss in self._losses]
        mean = torch.stack(losses).mean() * self._scale
        mean = trainer.strategy.reduce(mean, reduce_op="mean")
        if mean.is_cuda:
            mean = mean.to("cpu", non_blocking=True)  # into pinned memory
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record()
        self._average = mean
        self.ready_step = optimizer_step + 1
        self._losses = []

    def take(self, moment: Moment) -> float | None:
        """The average, once and late; None while there is none to read."""
        if self._average is None or self.ready_step is None or moment.optimizer_step < self.ready_step:
            return None
        value = self._on_host()
        self._average = self.ready_step = None
        return value

    def _on_host(self) -> float | None:
        if self._arrival is not None:
            self._arrival.synchronize()
        return None if self._average is None else float(self._average)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to remember, in plain types; this reads the device."""
        return {
            "losses": torch.stack(self._losses).tolist() if self._losses else [],  # one transfer
            "average": self._on_host(),
            "ready_step": self.ready_step,
        }

    def remember(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._losses = [torch.tensor(loss) for loss in state["losses"]]
        self._average = None if state["average"] is None else torch.tensor(state["average"])
        self.ready_step = state["ready_step"]
