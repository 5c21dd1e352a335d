"""The modifiers for scores, by statistics of the whole batch. Shapes: B sequences."""

import math

import torch
from torch import Tensor

from lighter_freezers.arguments import positive
from lighter_freezers.gpt.losses.modifier import ScoreModifier

__all__ = ["SequenceCorrelationModifier", "SequenceVarianceModifier"]


class SequenceVarianceModifier(ScoreModifier):
    """Raises the loss while the scores vary less than their targets.

        r = variance of the targets / max(variance of the scores, eps)
        factor = 1 + (scale - 1) (1 - exp(-alpha max(r - 1, 0)))        in [1, scale]

    No gradient flows through the factor: it makes the steps larger, and does not itself push the scores
    apart. Variances are those of this process's batch, divided by B; a batch of one has none and factor 1.
    The formula is the one of the multi-mode GPT's loss modifiers.

    Metrics: `variance_ratio` (r), `factor`.

    Args:
        scale: The largest factor, above 1.
        alpha: How fast that factor is approached, above 0.
        eps: The smallest variance of the scores, above 0.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.
    """

    def __init__(self, scale: float = 2.0, alpha: float = 1.5, eps: float = 1.0e-8) -> None:
        super().__init__()
        self.scale = positive("SequenceVarianceModifier.scale", scale)
        self.alpha = positive("SequenceVarianceModifier.alpha", alpha)
        self.eps = positive("SequenceVarianceModifier.eps", eps)
        if self.scale <= 1:
            raise ValueError(f"SequenceVarianceModifier.scale must be above 1. Got {scale}.")

    @torch.no_grad()
    def factor(self, scores: Tensor, targets: Tensor) -> Tensor:
        """In [1, scale]."""
        ratio = targets.var(correction=0) / scores.var(correction=0).clamp_min(self.eps)
        factor = 1 + (self.scale - 1) * (1 - (-self.alpha * (ratio - 1).clamp_min(0)).exp())
        self._note(variance_ratio=ratio, factor=factor)
        return factor


class SequenceCorrelationModifier(ScoreModifier):
    """Raises the loss the less the scores of a batch correlate with their targets.

    With the Pearson correlation c of scores and targets

        factor = A c^2 + B c + C,  A = (sqrt(alpha) - 1)^2 / 2,  B = (1 - alpha) / 2,  C = sqrt(alpha)

    which is 1 for c = 1, sqrt(alpha) for c = 0 and alpha for c = -1. The formula is the one of the multi-mode
    GPT's loss modifiers. No gradient flows through the factor. The correlation is that of this process's
    batch; where it is undefined, because all targets are equal or B is 1, the factor is 1.

    Metrics: `correlation` (0 where it is undefined), `factor`.

    Args:
        alpha: The largest factor, in (1, 9]: above 9 the parabola has its minimum before c = 1.
        eps: Added to the product of the deviations, above 0.

    Raises:
        TypeError: An argument is not a number.
        ValueError: An argument is out of range.
    """

    def __init__(self, alpha: float = 4.0, eps: float = 1.0e-8) -> None:
        super().__init__()
        self.alpha = positive("SequenceCorrelationModifier.alpha", alpha)
        self.eps = positive("SequenceCorrelationModifier.eps", eps)
        if not 1 < self.alpha <= 9:
            raise ValueError(
                f"SequenceCorrelationModifier.alpha must be above 1 and at most 9. Got {alpha}. "
                "Beyond 9 a correlation below 1 would get the smallest factor."
            )

    @torch.no_grad()
    def factor(self, scores: Tensor, targets: Tensor) -> Tensor:
        """In [1, alpha]."""
        deviation = targets.std(correction=0)
        covariance = ((scores - scores.mean()) * (targets - targets.mean())).mean()
        c = (covariance / (scores.std(correction=0) * deviation + self.eps)).clamp(-1.0, 1.0)
        root = math.sqrt(self.alpha)
        parabola = (root - 1) ** 2 / 2 * c**2 + (1 - self.alpha) / 2 * c + root
        factor = torch.where(deviation > 0, parabola, 1.0)
        self._note(correlation=c, factor=factor)
        return factor
