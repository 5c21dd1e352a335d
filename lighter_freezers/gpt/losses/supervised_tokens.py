"""The positions of a batch that have a target, and the loss of each. No weights, no modifiers.

Shapes: B sequences, T positions, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SupervisedTokens"]


@dataclass(frozen=True)
class SupervisedTokens:
    """Log-probabilities and targets of a batch of sequences.

    Attributes:
        log_probabilities: (B, T, K), float32 whatever the logits were.
        labels: The target class, (B, T); the most probable one of a soft target; 0 where there is none.
        is_supervised: Which positions have a target, (B, T).
        probabilities: Soft targets, (B, T, K); None for hard ones.
    """

    log_probabilities: Tensor
    labels: Tensor
    is_supervised: Tensor
    probabilities: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, ignore_index: int) -> "SupervisedTokens":
        """Combine logits with targets.

        Args:
            logits: (B, T, K), or (T, K) for one sequence.
            targets: Classes (B, T), or soft targets (B, T, K) whose ignored rows sum to 0.
            ignore_index: The hard target that marks positions without a loss.

        Raises:
            ValueError: The shapes do not fit.
        """
        if logits.ndim == 2:
            logits, targets = logits.unsqueeze(0), targets.unsqueeze(0)
        is_soft = targets.ndim == 3
        if logits.ndim != 3 or targets.shape != (logits.shape if is_soft else logits.shape[:2]):
            raise ValueError(
                f"Logits of shape {tuple(logits.shape)} need targets (B, T), or soft ones (B, T, K). "
                f"Got {tuple(targets.shape)}."
            )
        # the cast happens inside the kernel where there is one, so that no float32 logits are kept
        log_probabilities = F.log_softmax(logits, dim=-1, dtype=torch.float32)
        if is_soft:
            is_supervised = targets.sum(dim=-1) != 0  # (B, T)
            return cls(log_probabilities, targets.argmax(dim=-1), is_supervised, targets.float())
        is_supervised = targets != ignore_index  # (B, T)
        return cls(log_probabilities, targets.masked_fill(~is_supervised, 0), is_supervised)

    def costs(self, class_weights: Tensor | None, smoothing: Tensor | None) -> Tensor:
        """The cross-entropy of each position with its target, 0 where there is none.

        With target probabilities y and class weights w it is the sum over classes of `-w_j y_j ln p_j`, as in
        torch's `cross_entropy` with a `weight`.

        Args:
            class_weights: w, (K). None means 1 for each class.
            smoothing: The share f of each target that moves to the other classes, (B, T):
                y becomes `(1 - f) y + f (1 - y) / (K - 1)`.

        Returns:
            (B, T) in nats.
        """
        weights = None if class_weights is None else class_weights.float()
        if self.probabilities is None:
            costs = self._hard_costs(weights, smoothing)
        else:
            costs = self._soft_costs(self.probabilities, weights, smoothing)
        return torch.where(self.is_supervised, costs, 0.0)

    def masses(self, class_weights: Tensor | None) -> Tensor:
        """The weight of each position in a mean: its target's class weight, 0 without a target: (B, T)."""
        if class_weights is None:
            return self.is_supervised.float()
        weights = class_weights.float()
        if self.probabilities is None:
            masses = weights[self.labels]
        else:
            masses = (self.probabilities * weights).sum(dim=-1)
        return torch.where(self.is_supervised, masses, 0.0)

    def _hard_costs(self, weights: Tensor | None, smoothing: Tensor | None) -> Tensor:
        flat = self.log_probabilities.flatten(0, 1)  # (B T, K)
        costs = F.nll_loss(flat, self.labels.flatten(), weight=weights, reduction="none")
        costs = costs.view_as(self.labels)  # (B, T)
        if smoothing is None:
            return costs
        # no matmul: autocast rounds it
        weighted = self.log_probabilities if weights is None else self.log_probabilities * weights
        of_all = -weighted.sum(dim=-1)  # (B, T, K) -> (B, T)
        return (1 - smoothing) * costs + smoothing / self._num_others * (of_all - costs)

    def _soft_costs(self, probabilities: Tensor, weights: Tensor | None, smoothing: Tensor | None) -> Tensor:
        if smoothing is not None:
            share = smoothing.unsqueeze(-1)  # (B, T, 1)
            probabilities = (1 - share) * probabilities + share * (1 - probabilities) / self._num_others
        costs = -probabilities * self.log_probabilities  # (B, T, K)
        return (costs if weights is None else costs * weights).sum(dim=-1)

    @property
    def _num_others(self) -> int:
        return max(1, self.log_probabilities.shape[-1] - 1)
