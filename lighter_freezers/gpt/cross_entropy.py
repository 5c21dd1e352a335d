"""Mean cross-entropies that are 0, with a gradient of zeros, when no position has a target.

Shapes: N positions, K classes. No function here synchronizes with a GPU.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["balanced_weights", "mean_cross_entropy", "soft_cross_entropy", "weighted_cross_entropy"]


def mean_cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """The mean over positions with a target, in nats.

    Args:
        logits: (N, K).
        targets: Classes, (N).
        ignore_index: The target of positions that do not count.

    Returns:
        A scalar: equal to torch's bit for bit, but 0 and not NaN where no position counts.
    """
    is_any = (targets != ignore_index).any()
    stand_in = 1 if ignore_index == 0 else 0  # any valid class
    loss = F.cross_entropy(logits, torch.where(is_any, targets, stand_in), ignore_index=ignore_index)
    return loss * is_any  # times 1; or, where no position counts, a finite loss times 0


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, ignore_index: int) -> Tensor:
    """The mean weighted by the classes of the targets: `sum w c / sum w`.

    Args:
        logits: (N, K).
        targets: Classes, (N).
        weights: One per class, (K).
        ignore_index: The target of positions that do not count.
    """
    weights = weights.to(logits.dtype)
    total = F.cross_entropy(logits, targets, weights, ignore_index=ignore_index, reduction="sum")
    is_valid = targets != ignore_index
    mass = torch.where(is_valid, weights[torch.where(is_valid, targets, 0)], 0).sum()
    return total / torch.where(mass > 0, mass, 1)


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """The mean over positions with a target; the same as for classes when targets are one-hot.

    The loss of position n is `sum_k -w_k t_nk ln p_nk`. Its weight in the mean is 1 without class weights,
    else `sum_k w_k t_nk`.

    Args:
        logits: (N, K).
        targets: Probabilities of the classes, (N, K). A row that sums to 0 does not count.
        weights: One per class, (K). None: all are 1.
    """
    targets = targets.to(logits.dtype)
    weighted = targets if weights is None else targets * weights.to(logits.dtype)  # (N, K)
    total = -(weighted * logits.log_softmax(dim=-1)).sum()
    mass = (targets.sum(dim=-1) > 0).sum() if weights is None else weighted.sum()
    return total / torch.where(mass > 0, mass, 1)


def balanced_weights(targets: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Weights that give each class of a batch the same total: `w_k = N / (K count_k)`, 0 for absent classes.

    Args:
        targets: Classes (N), or probabilities (N, K) whose rows that do not count sum to 0.
        num_classes: K.
        ignore_index: The class of positions that do not count.

    Returns:
        (K), float32.
    """
    if targets.is_floating_point():
        counts = targets.sum(dim=0).float()  # (K)
        num_valid = (targets.sum(dim=-1) > 0).sum()
    else:
        classes = torch.arange(num_classes, device=targets.device)
        is_valid = targets != ignore_index
        counts = ((targets[:, None] == classes) & is_valid[:, None]).sum(dim=0).float()  # (N, K) -> (K)
        num_valid = is_valid.sum()
    return torch.where(counts > 0, num_valid / (num_classes * counts), 0.0)
