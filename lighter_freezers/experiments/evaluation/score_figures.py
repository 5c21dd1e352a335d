"""How well a scorer scores sequences: moments over batches and ranks, then ratios.

Shapes: B batch, R parts.
"""

from typing import Any

import torch
from torch import Tensor

from lighter_freezers.experiments.evaluation.mode_figures import Batch, Figures

__all__ = ["ScoreFigures"]

FLAT = 1.0e-6  # scores are in [0, 1]; a smaller standard deviation is rounding


class ScoreFigures(Figures):
    """Mean squared error, R2 and Pearson correlation.

    R2 is 1 - (squared errors) / (squared deviations of the targets from their mean), so 0 is as good as
    always saying their mean, and it may be negative. Where the targets do not vary, as those of one sequence,
    R2 is 0; where either side does not vary, the correlation is 0.
    """

    # number, means of score and target, their squared deviations and product of deviations, squared errors
    moments: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("moments", torch.zeros(7), dist_reduce_fx=_merged)

    def update(self, predictions: Tensor, batch: Batch) -> None:
        """Add one batch.

        Args:
            predictions: Scores, (B).
            batch: `targets`, (B).
        """
        scores, targets = predictions.float(), batch["targets"].float()
        zero = torch.zeros_like(scores)
        singles = [torch.ones_like(scores), scores, targets, zero, zero, zero, (scores - targets).square()]
        self.moments = _merged(torch.cat([self.moments[None], torch.stack(singles, dim=1)]))

    def compute(self) -> dict[str, Tensor]:
        """`loss` and `mse`, which are the same, `r2` and `pearson`."""
        number, _, _, of_scores, of_targets, common, errors = self.moments
        mse = errors / number.clamp(min=1)
        least = number * FLAT**2
        varies = of_targets > least
        vary = varies & (of_scores > least)
        r2 = torch.where(varies, 1 - errors / torch.where(varies, of_targets, 1), 0.0)
        pearson = torch.where(vary, common / torch.where(vary, of_scores * of_targets, 1).sqrt(), 0.0)
        return {"loss": mse, "mse": mse, "r2": r2, "pearson": pearson.clamp(-1, 1)}


def _merged(parts: Tensor) -> Tensor:
    """The moments of all from those of parts, (R, 7) -> (7).

    Deviations are taken from the mean, and put together by T. F. Chan, G. H. Golub and R. J. LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances" (1979), so nothing is lost
    where the mean is large and the variance small.
    """
    numbers = parts[:, 0]  # (R)
    total = numbers.sum()
    means = (numbers[:, None] * parts[:, 1:3]).sum(dim=0) / total.clamp(min=1)  # (2)
    shifts = parts[:, 1:3] - means  # (R, 2)
    products = torch.stack(
        [shifts[:, 0].square(), shifts[:, 1].square(), shifts[:, 0] * shifts[:, 1]], dim=1
    )  # (R, 3)
    deviations = (parts[:, 3:6] + numbers[:, None] * products).sum(dim=0)  # (3)
    return torch.cat([total[None], means, deviations, parts[:, 6].sum()[None]])
