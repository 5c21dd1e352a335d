"""The language model's task: predict the next token, in a corpus or in rows of your own."""

from dataclasses import dataclass
from functools import cached_property

import torch

from lighter_freezers.experiments.data.batches import (
    EncodedRow,
    PaddedRows,
    Sequences,
    TokenWindows,
    about_long_rows,
)
from lighter_freezers.experiments.data.corpus import Corpus
from lighter_freezers.experiments.data.fields import text_of
from lighter_freezers.experiments.data.rows import RowFiles
from lighter_freezers.experiments.data.tokenizer import TextTokenizer

__all__ = ["CorpusTask", "RowTextsTask"]


@dataclass(frozen=True)
class CorpusTask:
    """All text of a corpus in windows of equal length; a `Task`.

    Args:
        corpus: The text.
    """

    corpus: Corpus

    def describe(self) -> str:
        """A text with source, sizes and digest."""
        return self.corpus.describe()

    def sequences(
        self, split: str, tokenizer: TextTokenizer, block_size: int, limit: int | None
    ) -> Sequences:
        """Windows of `block_size` tokens."""
        windows = TokenWindows(self.corpus.split(split), tokenizer, block_size, limit)
        if len(windows) == 0:
            raise ValueError(
                f"The {split} text has {windows.num_tokens} tokens: too few for one sequence of block_size="
                f"{block_size} and the token after it. Lower block_size, or give a longer text."
            )
        return windows


@dataclass(frozen=True)
class RowTextsTask:
    """One sequence per row, `<eos> text <eos>`; a longer text continues in the next one. A `Task`.

    Args:
        files: Rows with a `text`.
    """

    files: RowFiles

    @cached_property
    def corpus(self) -> Corpus:
        """The texts of the training rows."""
        return self.files.corpus(self._texts("train"))

    def describe(self) -> str:
        """A text with source, sizes and digest."""
        return self.corpus.describe()

    def sequences(
        self, split: str, tokenizer: TextTokenizer, block_size: int, limit: int | None
    ) -> Sequences:
        """The rows of a split, in pieces of at most `block_size` tokens, with the tokens that follow."""
        num_bytes = torch.tensor(tokenizer.bytes_per_token())
        streams = [
            torch.tensor([tokenizer.eos_id, *ids.tolist(), tokenizer.eos_id])
            for ids in tokenizer.encode_once(self._texts(split))
        ]
        rows = [
            EncodedRow(pair[0], pair[1], int(num_bytes[pair[1]].sum()))
            for stream in streams
            for pair in torch.stack([stream[:-1], stream[1:]]).tensor_split(
                tuple(range(block_size, len(stream) - 1, block_size)), dim=1
            )
        ]
        num_long = sum(len(stream) - 1 > block_size for stream in streams)
        remark = about_long_rows(num_long, len(streams), f"{block_size=}", "continued in the next sequence")
        return PaddedRows(rows, remark, limit, pad_id=tokenizer.eos_id)

    def _texts(self, split: str) -> list[str]:
        return [text_of(row) for row in self.files.read(split, ["text"])]
