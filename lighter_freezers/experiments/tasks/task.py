"""What a data module asks of a text: which one it is, and its sequences. Abstract."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from lighter_freezers.experiments.data.corpus import Corpus
from lighter_freezers.experiments.data.sequences import Sequences

__all__ = ["AnyTokenizer", "Task", "Tokenizer"]


class Tokenizer(Protocol):
    """What every data module asks of a tokenizer; a task may ask for more."""

    vocab_size: int

    def decode(self, ids: Sequence[int]) -> str:
        """The text that token ids stand for."""


AnyTokenizer = TypeVar("AnyTokenizer", bound=Tokenizer)
Accepted = TypeVar("Accepted", bound=Tokenizer, contravariant=True)


class Task(Protocol[Accepted]):
    """A text that was read, and what a model is to learn about it."""

    @property
    def corpus(self) -> Corpus:
        """The text that a tokenizer is trained on."""

    def describe(self) -> str:
        """Where it is from and how much it is, in words for a log line."""

    def prepare(self) -> None:
        """Make and keep what takes seconds to make; one process of a machine does this."""

    def sequences(self, split: str, tokenizer: Accepted, block_size: int, limit: int | None) -> Sequences:
        """The sequences of `train`, `val` or `test`.

        Args:
            split: Which of them.
            tokenizer: Turns text into tokens.
            block_size: Tokens in a sequence at most.
            limit: How many to keep, spread evenly. None keeps all.

        Raises:
            ValueError: There is not one, or a row is none of this task.
        """
