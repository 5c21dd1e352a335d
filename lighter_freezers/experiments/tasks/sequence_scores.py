"""The sequence scorer's task: one score for a text, the share of documentation or your own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lighter_freezers.experiments.data.batches import (
    Batch,
    EncodedRow,
    PaddedRows,
    Sequences,
    Windows,
    about_long_rows,
)
from lighter_freezers.experiments.data.corpus import Corpus
from lighter_freezers.experiments.data.fields import score_of, text_of
from lighter_freezers.experiments.data.rows import Row, RowFiles
from lighter_freezers.experiments.data.tokenizer import TextTokenizer
from lighter_freezers.experiments.tasks.labelled_code import LabelledCode

__all__ = ["DocumentationTask", "ScoredTextsTask", "cls_token"]


def cls_token(tokenizer: TextTokenizer, given: int | None) -> int:
    """The id of [CLS]: the given one, or the first after the tokenizer's ids."""
    return tokenizer.vocab_size if given is None else given


@dataclass(frozen=True)
class DocumentationTask:
    """Windows of Python source with the share of their characters in strings and comments; a `Task`.

    Args:
        corpus: ASCII modules.
        cache_dir: The cache folder for the classes of characters.
        cls_token_id: The first token of each sequence. None takes the first id after the tokenizer's.
    """

    corpus: Corpus
    cache_dir: Path | None = None
    cls_token_id: int | None = None

    def describe(self) -> str:
        """A text with source, sizes and digest."""
        return self.corpus.describe()

    def sequences(
        self, split: str, tokenizer: TextTokenizer, block_size: int, limit: int | None
    ) -> Sequences:
        """[CLS] and windows of `block_size` - 1 tokens."""
        code = LabelledCode(self.corpus, split, tokenizer, self.cache_dir)
        windows = _ScoredWindows(code, block_size, limit, cls_token(tokenizer, self.cls_token_id))
        code.check_windows(len(windows), block_size)
        return windows


class _ScoredWindows(Windows):
    """Windows of tokens after [CLS], each with one score."""

    def __init__(self, code: LabelledCode, block_size: int, limit: int | None, cls_token_id: int) -> None:
        super().__init__(code.ids, block_size - 1, limit)
        self._scores = code.documentation_shares(self._starts, block_size - 1)
        self._cls_token_id = cls_token_id

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        windows = self._tokens[self._places(indices)]  # (B, T - 1)
        first = windows.new_full((len(windows), 1), self._cls_token_id)
        return {"input_ids": torch.cat([first, windows], dim=1), "targets": self._scores[list(indices)]}

    def describe(self) -> str:
        return f"{len(self):,} sequences of [CLS] and {len(self._offsets)} tokens"


@dataclass(frozen=True)
class ScoredTextsTask:
    """Rows of a text with a score from 0 to 1; a `Task`.

    Args:
        files: Rows with `text` and `score`.
        cls_token_id: The first token of each sequence. None takes the first id after the tokenizer's.
    """

    files: RowFiles
    cls_token_id: int | None = None

    @cached_property
    def corpus(self) -> Corpus:
        """The texts of the training rows."""
        return self.files.corpus(text_of(row) for row in self._read("train"))

    def describe(self) -> str:
        """A text with source, sizes and digest."""
        return self.corpus.describe()

    def sequences(
        self, split: str, tokenizer: TextTokenizer, block_size: int, limit: int | None
    ) -> Sequences:
        """[CLS] and the rows of a split, each cut after `block_size` - 1 tokens."""
        read = self._read(split)
        scores = [score_of(row) for row in read]
        encoded = tokenizer.encode_once([text_of(row) for row in read])
        first = cls_token(tokenizer, self.cls_token_id)
        rows = [
            EncodedRow(torch.tensor([first, *ids[: block_size - 1].tolist()]), torch.tensor(score))
            for ids, score in zip(encoded, scores, strict=True)
        ]
        num_long = sum(len(ids) > block_size - 1 for ids in encoded)
        remark = about_long_rows(num_long, len(rows), f"{block_size=} with [CLS]", "cut")
        return PaddedRows(rows, remark, limit, pad_id=tokenizer.eos_id)

    def _read(self, split: str) -> list[Row]:
        return self.files.read(split, ["text", "score"])
