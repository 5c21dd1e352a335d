"""The interface of a loss modifier: its modes, its weights, and its metrics."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lighter_freezers.gpt.losses.supervised_tokens import SupervisedTokens

__all__ = ["MODES", "SCORE_MODES", "TOKEN_MODES", "LossModifier", "ScoreModifier", "SequenceWeightModifier"]

TOKEN_MODES = ("language_model", "token_classifier")
SCORE_MODES = ("sequence_scorer",)
MODES = (*TOKEN_MODES, *SCORE_MODES)


class LossModifier(ABC):
    """Something that changes a loss, and keeps metrics about it on the device.

    Attributes:
        modes: The modes of the GPT in which it applies.
    """

    modes: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_batches = 0

    def get_metrics(self) -> dict[str, Tensor]:
        """The mean of each metric over the batches since the last reset, on the device."""
        return {key: total / self._num_batches for key, total in self._sums.items()}

    def reset_metrics(self) -> None:
        """Reset the metrics."""
        self._sums, self._num_batches = {}, 0

    def _note(self, **figures: Tensor) -> None:
        self._num_batches += 1
        for key, value in figures.items():
            self._sums[key] = self._sums.get(key, torch.zeros_like(value)) + value


class SequenceWeightModifier(LossModifier):
    """A modifier that gives each sequence of tokens a weight."""

    modes = TOKEN_MODES

    @abstractmethod
    def sequence_weights(self, tokens: SupervisedTokens) -> Tensor:
        """Weights (B), computed without gradient; those of sequences without a target do not matter."""


class ScoreModifier(LossModifier):
    """A modifier that multiplies the loss of a batch of scores."""

    modes = SCORE_MODES

    @abstractmethod
    def factor(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The factor, a scalar computed without gradient, for scores and targets (B) in float32."""
