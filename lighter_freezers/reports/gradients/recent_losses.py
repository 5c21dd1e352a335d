"""The training losses of the steps since somebody last asked, kept on the device and not read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lighter_freezers.engine.trainer_clock import moment, window_length

__all__ = ["RecentLosses"]


class RecentLosses:
    """Keeps a reference to the loss of each batch, until their mean is taken."""

    def __init__(self) -> None:
        self._window: list[Tensor] = []  # of batches whose optimizer step is still to come
        self._losses: list[Tensor] = []
        self._step = 0

    def note(self, trainer: Any, outputs: Any) -> None:
        """Keep the loss of one batch; a batch without one is passed over."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._window.append(loss.detach())
        step = moment(trainer).optimizer_step
        if step != self._step:
            self._step = step
            self._losses += self._window
            self._window = []

    def take(self, trainer: Any) -> list[Tensor]:
        """The mean of the whole steps since the last call, over all ranks, which all have to call this.

        Returns:
            One unread scalar; nothing if there were no losses.
        """
        losses, self._losses = self._losses, []
        if not losses:
            return []
        mean = torch.stack(losses).float().mean() * window_length(trainer)  # Lightning divided each by it
        return [trainer.strategy.reduce(mean.to(trainer.strategy.root_device), reduce_op="mean")]
