"""How well a classifier labels tokens: counts for each class over batches and ranks, then ratios.

Shapes: B batch, T time, N positions, K classes. No update makes the host wait for a GPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lighter_freezers.experiments.evaluation.mode_figures import Batch, Figures, targets_of

__all__ = ["TokenFigures"]


class TokenFigures(Figures):
    """Loss, accuracy, and F1 of each class and on the average of classes.

    The F1 of a class is 2 TP / (2 TP + FP + FN), and 0 for one that neither occurs nor is predicted. Such a
    class is left out of `macro_f1`, the mean over the others. A soft target counts as its largest class.

    Args:
        num_classes: K.
        ignore_index: The target of positions that do not count. Soft targets that sum to 0 do not either.
        class_weights: As in `GPTConfig`, for the loss alone. `balanced` is over the whole data set here: the
            mean of the classes' mean losses.
    """

    nats: Tensor
    masses: Tensor
    true_positives: Tensor
    num_predicted: Tensor
    num_actual: Tensor
    class_weights: Tensor

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        class_weights: str | Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names: Sequence[str] = [str(index) for index in range(num_classes)]
        self.is_balanced = class_weights == "balanced"
        is_fixed = class_weights is not None and not self.is_balanced
        weights = torch.tensor(class_weights) if is_fixed else torch.ones(num_classes)
        self.register_buffer("class_weights", weights, persistent=False)
        for name, dtype in (("nats", torch.float32), ("masses", torch.float32)):
            self.add_state(name, torch.zeros(num_classes, dtype=dtype), dist_reduce_fx="sum")
        for name in ("true_positives", "num_predicted", "num_actual"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def learn_from(self, datamodule: object) -> None:
        """Call the classes by their names, if the data module has any."""
        names = getattr(datamodule, "class_names", None)
        if names is not None:
            self.class_names = names

    def update(self, predictions: Tensor, batch: Batch) -> None:
        """Add one batch.

        Args:
            predictions: Logits, (B, T, K).
            batch: `targets`, classes (B, T) or soft targets (B, T, K).
        """
        logits = predictions.flatten(0, 1).float()  # (N, K)
        targets = targets_of(batch, self.ignore_index).flatten(0, 1)  # (N) or (N, K)
        if targets.ndim == 1:
            shares = (self._one_hot(targets) & (targets != self.ignore_index)[:, None]).float()  # (N, K)
        else:
            shares = targets.float()  # (N, K)
        counts = shares.sum(dim=1) > 0  # (N)
        actual = self._one_hot(shares.argmax(dim=1)) & counts[:, None]  # (N, K)
        predicted = self._one_hot(logits.argmax(dim=1)) & counts[:, None]  # (N, K)
        self.nats = self.nats - (shares * logits.log_softmax(dim=1)).sum(dim=0)
        self.masses = self.masses + shares.sum(dim=0)
        self.true_positives = self.true_positives + (actual & predicted).sum(dim=0)
        self.num_predicted = self.num_predicted + predicted.sum(dim=0)
        self.num_actual = self.num_actual + actual.sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """`loss` in nats per token, `accuracy`, `macro_f1`, and `f1/NAME` of each class."""
        occurring = self.num_predicted + self.num_actual  # (K)
        f1 = 2 * self.true_positives / occurring.clamp(min=1)
        return {
            "loss": self._loss(),
            "accuracy": self.true_positives.sum() / self.num_actual.sum().clamp(min=1),
            "macro_f1": f1.sum() / (occurring > 0).sum().clamp(min=1),
            **{f"f1/{name}": value for name, value in zip(self.class_names, f1, strict=True)},
        }

    def _loss(self) -> Tensor:
        if self.is_balanced:
            is_there = self.masses > 0
            return (self.nats / torch.where(is_there, self.masses, 1)).sum() / is_there.sum().clamp(min=1)
        mass = (self.class_weights * self.masses).sum()
        return (self.class_weights * self.nats).sum() / torch.where(mass > 0, mass, 1)

    def _one_hot(self, classes: Tensor) -> Tensor:
        """(N) -> (N, K)."""
        return classes[:, None] == torch.arange(self.num_classes, device=classes.device)
