"""What batches are made of: sequences of tokens that are asked for by their numbers. Abstract."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Batch", "Sequences", "evenly_spread", "window_starts"]

Batch = dict[str, Any]  # tensors by name; texts too where somebody generates


class Sequences(Dataset[Batch], ABC):
    """A data set that makes a whole batch from a list of numbers."""

    @abstractmethod
    def __len__(self) -> int:
        """How many sequences there are."""

    @abstractmethod
    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The batch of these sequences."""

    @abstractmethod
    def describe(self) -> str:
        """How many there are and how long they are, in words for a log line."""


def evenly_spread(total: int, limit: int | None) -> Tensor:
    """The numbers of at most `limit` of `total` things, spread evenly over them; None takes all."""
    kept = total if limit is None else min(limit, total)
    return torch.arange(kept) * total // max(kept, 1)


def window_starts(num_tokens: int, block_size: int, num_windows: int | None) -> Tensor:
    """Where windows side by side begin in a stream of tokens, each with the token that follows it.

    What is left at the end, less than a window, is left out.
    """
    return evenly_spread((num_tokens - 1) // block_size, num_windows) * block_size
