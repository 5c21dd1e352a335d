"""The training losses since the last row, kept on the device until they are needed."""

from torch import Tensor

from lighter_freezers.engine.trainer_clock import moment
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.engine.training_loss import loss_of, mean_loss

__all__ = ["RecentLosses"]


class RecentLosses:
    """Keeps a reference to the loss of each batch, until their mean is taken."""

    def __init__(self) -> None:
        self.window = 1  # by which Lightning has divided the loss of the batch under way
        self._window: list[Tensor] = []  # of batches whose optimizer step is still pending
        self._losses: list[Tensor] = []
        self._step = 0

    def note(self, trainer: TrainerLike, outputs: object) -> None:
        """Keep the loss of one batch; a batch without a loss is skipped."""
        loss = loss_of(outputs, self.window)
        if loss is not None:
            self._window.append(loss)
        step = moment(trainer).optimizer_step
        if step != self._step:
            self._step = step
            self._losses += self._window
            self._window = []

    def take(self, trainer: TrainerLike) -> list[Tensor]:
        """The mean over complete steps since the last call and over all ranks; every rank has to call this.

        Returns:
            One unread scalar; nothing if there were no losses.
        """
        losses, self._losses = self._losses, []
        return [mean_loss(trainer, losses)] if losses else []
