"""The interface of a task for a data module: a corpus and its sequences."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from lighter_freezers.experiments.data.batches import Sequences
from lighter_freezers.experiments.data.corpus import Corpus

__all__ = ["AnyTokenizer", "Task", "DataTokenizer"]


class DataTokenizer(Protocol):
    """What every data module requires of a tokenizer; a task may require more."""

    vocab_size: int

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""


AnyTokenizer = TypeVar("AnyTokenizer", bound=DataTokenizer)
Accepted = TypeVar("Accepted", bound=DataTokenizer, contravariant=True)


class Task(Protocol[Accepted]):
    """A text, and what a model learns about it."""

    @property
    def corpus(self) -> Corpus:
        """The text that a tokenizer is trained on."""

    def describe(self) -> str:
        """Its source and size, for a log line."""

    def sequences(self, split: str, tokenizer: Accepted, block_size: int, limit: int | None) -> Sequences:
        """The sequences of `train`, `val` or `test`.

        Args:
            split: `train`, `val` or `test`.
            tokenizer: The tokenizer.
            block_size: Tokens in a sequence at most.
            limit: How many to keep, spread evenly. None keeps all.

        Raises:
            ValueError: There are none, or a row is invalid for this task.
        """
