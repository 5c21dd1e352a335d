"""What the figures of every mode have in common: batches go in, totals stay, ratios come out. Abstract."""

from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor
from torchmetrics import Metric

__all__ = ["Batch", "Figures", "targets_of"]

Batch = Mapping[str, Tensor]


class Figures(Metric):
    """The figures of one mode over a whole data set, exact over unequal batches and ranks."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    # Whoever adds to a state writes `self.x = self.x + y`, not `+=`: after `trainer.validate` the states are
    # inference tensors, which a fit could not change in place.
    @abstractmethod
    def update(self, predictions: Tensor, batch: Batch) -> None:
        """Add one batch.

        Args:
            predictions: What the model returned for it.
            batch: As the data module gives it, with `targets`, and `attention_mask` if a row is padded.
        """

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Name of the figure -> its value over everything added since the last reset."""

    def learn_from(self, datamodule: object) -> None:
        """Take over what the data module knows and a batch does not tell; most figures need nothing."""


def targets_of(batch: Batch, ignore_index: int) -> Tensor:
    """The classes of the tokens, (B, T), or soft targets, (B, T, K); those of padding count nothing."""
    targets, mask = batch["targets"], batch.get("attention_mask")
    if mask is None:
        return targets
    if targets.is_floating_point():
        return targets * mask.bool()[:, :, None]
    return targets.masked_fill(~mask.bool(), ignore_index)
