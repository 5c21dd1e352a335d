"""The figures of each mode of the GPT: totals over batches and ranks, then ratios.

Shapes: B batch, T time, N positions, V vocabulary, K classes, R parts. No update synchronizes with a GPU.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from lighter_freezers.gpt.config import GPTConfig, ModelMode

__all__ = [
    "TensorBatch",
    "Figures",
    "ScoreFigures",
    "TextLikelihood",
    "TokenFigures",
    "figures_of",
    "targets_of",
]

TensorBatch = Mapping[str, Tensor]


class Figures(Metric):
    """The figures of one mode over a whole data set, exact over unequal batches and ranks."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    # Subclasses write `self.x = self.x + y`, not `+=`: after `trainer.validate` the states are inference
    # tensors, which a fit cannot change in place.
    @abstractmethod
    def update(self, predictions: Tensor, batch: TensorBatch) -> None:
        """Add one batch.

        Args:
            predictions: The model's output for it.
            batch: From the data module, with `targets`, and `attention_mask` if a row is padded.
        """

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Name of the figure -> its value over everything added since the last reset."""

    def learn_from(self, datamodule: object) -> None:
        """Read what only the data module knows, such as class names; most figures need nothing."""


def targets_of(batch: TensorBatch, ignore_index: int) -> Tensor:
    """The classes of the tokens, (B, T), or soft targets, (B, T, K); those of padding are ignored."""
    targets, mask = batch["targets"], batch.get("attention_mask")
    if mask is None:
        return targets
    if targets.is_floating_point():
        return targets * mask.bool()[:, :, None]
    return targets.masked_fill(~mask.bool(), ignore_index)


class TextLikelihood(Figures):
    """Loss, perplexity and bits per byte of a text.

    Bits per byte are the total nats over ln 2, divided by the bytes of text: they compare models with
    different tokenizers, and compressors.

    Args:
        ignore_index: The target of positions that do not count.
    """

    nats: Tensor
    num_tokens: Tensor
    num_bytes: Tensor
    num_unmeasured: Tensor  # batches without their number of bytes

    def __init__(self, ignore_index: int, **options: Any) -> None:  # those of every torchmetrics Metric
        super().__init__(**options)
        self.ignore_index = ignore_index
        self.add_state("nats", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_bytes", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("num_unmeasured", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, batch: TensorBatch) -> None:
        """Add one batch.

        Args:
            predictions: Logits of the next token, (B, T, V).
            batch: `targets`, the next tokens, (B, T), and `num_bytes`, the bytes of text in the targets of
                each row, (B). Where a batch has no `num_bytes`, there is no `bits_per_byte`.
        """
        targets = targets_of(batch, self.ignore_index).flatten()  # (N)
        logits = predictions.flatten(0, 1).float()  # (N, V)
        nats = F.cross_entropy(logits, targets, ignore_index=self.ignore_index, reduction="sum")
        self.nats = self.nats + nats
        self.num_tokens = self.num_tokens + (targets != self.ignore_index).sum()
        if "num_bytes" in batch:
            self.num_bytes = self.num_bytes + batch["num_bytes"].sum()
        else:
            self.num_unmeasured = self.num_unmeasured + 1

    def compute(self) -> dict[str, Tensor]:
        """`loss` in nats per token, its exponential `perplexity`, and `bits_per_byte` if bytes are known."""
        loss = self.nats / self.num_tokens
        figures = {"loss": loss, "perplexity": loss.exp()}
        if not self.num_unmeasured:
            figures["bits_per_byte"] = self.nats / math.log(2) / self.num_bytes
        return figures


FLAT = 1.0e-6  # scores are in [0, 1]; a smaller standard deviation is rounding


class ScoreFigures(Figures):
    """Mean squared error, R2 and Pearson correlation.

    R2 is 1 - (squared errors) / (squared deviations of the targets from their mean), so 0 is as good as
    always predicting their mean, and it may be negative. Where the targets do not vary, as with one sequence,
    R2 is 0; where either side does not vary, the correlation is 0.
    """

    # count, means of score and target, their squared deviations and product of deviations, squared errors
    moments: Tensor

    def __init__(self, **options: Any) -> None:  # those of every torchmetrics Metric
        super().__init__(**options)
        self.add_state("moments", torch.zeros(7), dist_reduce_fx=_merged)

    def update(self, predictions: Tensor, batch: TensorBatch) -> None:
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
        """`loss` and `mse`, which are equal, `r2` and `pearson`."""
        number, _, _, of_scores, of_targets, common, errors = self.moments
        mse = errors / number.clamp(min=1)
        least = number * FLAT**2
        varies = of_targets > least
        vary = varies & (of_scores > least)
        r2 = torch.where(varies, 1 - errors / torch.where(varies, of_targets, 1), 0.0)
        pearson = torch.where(vary, common / torch.where(vary, of_scores * of_targets, 1).sqrt(), 0.0)
        return {"loss": mse, "mse": mse, "r2": r2, "pearson": pearson.clamp(-1, 1)}


def _merged(parts: Tensor) -> Tensor:
    """Merge the moments of parts, (R, 7) -> (7).

    Deviations are from the mean and merged by the method of T. F. Chan, G. H. Golub and R. J. LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances" (1979), so no precision is
    lost where the mean is large and the variance small.
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


class TokenFigures(Figures):
    """Loss, accuracy, F1 of each class, and their mean.

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
        **options: Any,  # those of every torchmetrics Metric
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
        """Use the class names of the data module, if it has any."""
        names = getattr(datamodule, "class_names", None)
        if names is not None:
            self.class_names = names

    def update(self, predictions: Tensor, batch: TensorBatch) -> None:
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


def figures_of(config: GPTConfig) -> Figures:
    """New figures for a GPT's mode."""
    if config.mode == ModelMode.LANGUAGE_MODEL:
        return TextLikelihood(config.ignore_index)
    if config.mode == ModelMode.SEQUENCE_SCORER:
        return ScoreFigures()
    assert config.num_token_classes is not None
    return TokenFigures(config.num_token_classes, config.ignore_index, config.class_weights)
