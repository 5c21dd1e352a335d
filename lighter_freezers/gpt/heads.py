"""What each mode does with hidden states: its head, the shape of its predictions, and its loss.

Shapes: B batch, T time, C channels, V vocabulary, K classes.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighter_freezers.gpt.config import GPTConfig, ModelMode
from lighter_freezers.gpt.cross_entropy import (
    balanced_weights,
    mean_cross_entropy,
    soft_cross_entropy,
    weighted_cross_entropy,
)
from lighter_freezers.gpt.fused_loss import fused_cross_entropy, is_fusion_better
from lighter_freezers.gpt.losses.pipeline import LossModifierPipeline

__all__ = ["Objective", "objective_of"]


class Objective(nn.Module, ABC):
    """One mode: its head, its predictions, and its loss. It has no parameters.

    Attributes:
        head_name: The name of the head in the model.
    """

    head_name: str

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.mode = str(config.mode)

    @abstractmethod
    def new_head(self) -> nn.Linear:
        """The head, with torch's initial values."""

    @abstractmethod
    def checked_targets(self, targets: Tensor, input_ids: Tensor, is_real: Tensor | None) -> Tensor:
        """The targets, without those of padding.

        Raises:
            ValueError: Their shape or dtype is not that of this mode.
        """

    def predictions(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """What the model returns: logits, (B, T, C) -> (B, T, V or K), or scores."""
        logits: Tensor = head(hidden)
        return logits

    @abstractmethod
    def loss(self, predictions: Tensor, targets: Tensor, modifiers: LossModifierPipeline | None) -> Tensor:
        """The loss, a scalar."""

    def loss_of_hidden(
        self, head: nn.Module, hidden: Tensor, targets: Tensor, modifiers: LossModifierPipeline | None
    ) -> Tensor:
        """The same loss, from hidden states, where the predictions are not needed."""
        return self.loss(self.predictions(head, hidden), targets, modifiers)


class LanguageModelling(Objective):
    """Predicts the next token at every position: logits (B, T, V), mean cross-entropy."""

    head_name = "lm_head"

    def new_head(self) -> nn.Linear:
        """A linear layer (C) -> (V) without bias, so that it can be tied to the token embedding."""
        return nn.Linear(self.config.n_embd, self.config.vocab_size, bias=False)

    def checked_targets(self, targets: Tensor, input_ids: Tensor, is_real: Tensor | None) -> Tensor:
        """Check that targets are token numbers, (B, T)."""
        return _checked_classes(targets, input_ids, is_real, self.config.ignore_index)

    def loss(self, predictions: Tensor, targets: Tensor, modifiers: LossModifierPipeline | None) -> Tensor:
        """The cross-entropy in nats per token."""
        ignore_index = self.config.ignore_index
        if modifiers is not None and modifiers.is_active(self.mode):
            return modifiers.token_loss(predictions, targets, mode=self.mode, ignore_index=ignore_index)
        logits = _at_least_float32(predictions.flatten(0, 1))
        return mean_cross_entropy(logits, targets.flatten(), ignore_index)

    def loss_of_hidden(
        self, head: nn.Module, hidden: Tensor, targets: Tensor, modifiers: LossModifierPipeline | None
    ) -> Tensor:
        """The same loss; only positions with a target go through the head, in chunks if there are many."""
        if modifiers is not None and modifiers.is_active(self.mode):
            return super().loss_of_hidden(head, hidden, targets, modifiers)
        hidden, targets = hidden.flatten(0, 1), targets.flatten()  # (N, C), (N)
        ignore_index = self.config.ignore_index
        if self._looks_for_targets(hidden.device):
            hidden, targets = _supervised(hidden, targets, ignore_index)
        if is_fusion_better(head, hidden):
            return fused_cross_entropy(hidden, head.weight, targets, ignore_index)
        return mean_cross_entropy(_at_least_float32(head(hidden)), targets, ignore_index)

    def _looks_for_targets(self, device: torch.device) -> bool:
        if self.config.head_on_supervised_only is None:
            return device.type == "cpu" and not torch.compiler.is_compiling()
        return self.config.head_on_supervised_only


class TokenClassification(Objective):
    """Predicts a class for every token: logits (B, T, K), cross-entropy with optional class weights."""

    head_name = "classifier_head"
    class_weights: Tensor | None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.is_balanced = config.class_weights == "balanced"
        fixed = None
        if config.class_weights is not None and not self.is_balanced:
            fixed = torch.tensor(config.class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", fixed, persistent=False)

    def new_head(self) -> nn.Linear:
        """A linear layer (C) -> (K)."""
        assert self.config.num_token_classes is not None
        return nn.Linear(self.config.n_embd, self.config.num_token_classes)

    def checked_targets(self, targets: Tensor, input_ids: Tensor, is_real: Tensor | None) -> Tensor:
        """Check that targets are classes (B, T), or probabilities (B, T, K)."""
        if targets.ndim != 3:
            return _checked_classes(targets, input_ids, is_real, self.config.ignore_index)
        expected = (*input_ids.shape, self.config.num_token_classes)
        if targets.shape != expected or not targets.is_floating_point():
            raise ValueError(
                f"Soft targets are probabilities of shape (B, T, num_token_classes), here {expected}. "
                f"Got {tuple(targets.shape)} of {targets.dtype}."
            )
        return targets if is_real is None else targets * is_real[:, :, None]

    def loss(self, predictions: Tensor, targets: Tensor, modifiers: LossModifierPipeline | None) -> Tensor:
        """The cross-entropy in nats per token, weighted by `class_weights`."""
        ignore_index = self.config.ignore_index
        flat_targets = targets.flatten(0, 1)  # (N) or (N, K)
        weights = self._weights(flat_targets)
        if modifiers is not None and modifiers.is_active(self.mode):
            return modifiers.token_loss(
                predictions, targets, mode=self.mode, ignore_index=ignore_index, class_weights=weights
            )
        logits = _at_least_float32(predictions.flatten(0, 1))  # (N, K)
        if targets.ndim == 3:
            return soft_cross_entropy(logits, flat_targets, weights)
        if weights is None:
            return mean_cross_entropy(logits, flat_targets, ignore_index)
        return weighted_cross_entropy(logits, flat_targets, weights, ignore_index)

    def _weights(self, targets: Tensor) -> Tensor | None:
        if self.is_balanced:
            assert self.config.num_token_classes is not None
            return balanced_weights(targets, self.config.num_token_classes, self.config.ignore_index)
        return self.class_weights


class SequenceScoring(Objective):
    """Predicts one score for a sequence from its [CLS] token: (B) in (0, 1), mean squared error."""

    head_name = "sequence_head"

    def new_head(self) -> nn.Linear:
        """A linear layer (C) -> (1)."""
        return nn.Linear(self.config.n_embd, 1)

    def checked_targets(self, targets: Tensor, input_ids: Tensor, is_real: Tensor | None) -> Tensor:
        """Check that targets are scores, (B)."""
        if targets.shape != input_ids.shape[:1]:
            raise ValueError(
                f"A sequence_scorer has one target per sequence, here {len(input_ids)}. "
                f"Got targets of shape {tuple(targets.shape)}."
            )
        return targets

    def predictions(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """Scores: (B, 1, C) -> (B)."""
        return _at_least_float32(head(hidden)).sigmoid().flatten()

    def loss(self, predictions: Tensor, targets: Tensor, modifiers: LossModifierPipeline | None) -> Tensor:
        """The mean squared error."""
        targets = targets.to(predictions.dtype)
        if modifiers is not None and modifiers.is_active(self.mode):
            return modifiers.score_loss(predictions, targets)
        return F.mse_loss(predictions, targets)


def _supervised(hidden: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The positions that have a target, or one if none has; synchronizes with the device."""
    positions = (targets != ignore_index).nonzero().flatten()
    if len(positions) == len(targets):
        return hidden, targets
    if not len(positions):
        positions = positions.new_zeros(1)
    return hidden.index_select(0, positions), targets.index_select(0, positions)


def objective_of(config: GPTConfig) -> Objective:
    """The objective of a config's mode."""
    objectives: dict[str, type[Objective]] = {
        ModelMode.LANGUAGE_MODEL: LanguageModelling,
        ModelMode.TOKEN_CLASSIFIER: TokenClassification,
        ModelMode.SEQUENCE_SCORER: SequenceScoring,
    }
    return objectives[config.mode](config)


def _checked_classes(targets: Tensor, input_ids: Tensor, is_real: Tensor | None, ignore_index: int) -> Tensor:
    if targets.shape != input_ids.shape or targets.is_floating_point():
        raise ValueError(
            f"Targets are whole numbers, one per token, here {tuple(input_ids.shape)}. "
            f"Got {tuple(targets.shape)} of {targets.dtype}."
        )
    return targets.long() if is_real is None else targets.long().masked_fill(~is_real, ignore_index)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
