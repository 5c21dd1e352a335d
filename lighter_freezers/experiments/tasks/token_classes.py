"""The token classifier's task: a class for each token, of Python source or of labelled words of your own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from lighter_freezers.experiments.data.batches import (
    Batch,
    EncodedRow,
    PaddedRows,
    Sequences,
    Windows,
    about_long_rows,
    first_token_labels,
)
from lighter_freezers.experiments.data.cache import Ids
from lighter_freezers.experiments.data.corpus import Corpus
from lighter_freezers.experiments.data.fields import classes_of_rows, label_numbers, labels_of, words_of
from lighter_freezers.experiments.data.rows import Row, RowFiles
from lighter_freezers.experiments.data.tokenizer import TextTokenizer
from lighter_freezers.experiments.tasks.labelled_code import LabelledCode

__all__ = ["CodeClassesTask", "LabelledWordsTask"]


@dataclass(frozen=True)
class CodeClassesTask:
    """Windows of Python source with one of ten classes for each token; a `Task`.

    Args:
        corpus: ASCII modules.
        cache_dir: The cache folder for the classes.
    """

    corpus: Corpus
    cache_dir: Path | None = None

    def describe(self) -> str:
        """A text with source, sizes and digest."""
        return self.corpus.describe()

    def sequences(
        self, split: str, tokenizer: TextTokenizer, block_size: int, limit: int | None
    ) -> Sequences:
        """The same windows as for a language model, with classes instead of next tokens."""
        code = LabelledCode(self.corpus, split, tokenizer, self.cache_dir)
        windows = _ClassWindows(code, block_size, limit)
        code.check_windows(len(windows), block_size)
        return windows


class _ClassWindows(Windows):
    """Windows of tokens and their classes."""

    def __init__(self, code: LabelledCode, block_size: int, limit: int | None) -> None:
        super().__init__(code.ids, block_size, limit)
        self._labels = code.labels()

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        places = self._places(indices)  # (B, T)
        return {"input_ids": self._tokens[places], "targets": self._labels[places]}


@dataclass(frozen=True)
class LabelledWordsTask:
    """Rows of words with the name of a class each; a `Task`.

    Words are joined by spaces. The first token of a word has its label, its other tokens are ignored: the
    weight of a word does not depend on how many tokens it has.

    Args:
        files: Rows with `tokens` and `labels`.
        given_names: Names of the classes. None collects them from the training rows.
    """

    files: RowFiles
    given_names: tuple[str, ...] | None = None

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names given, or those in the training rows in alphabetical order."""
        return self.given_names or classes_of_rows(self._train_rows)

    @cached_property
    def corpus(self) -> Corpus:
        """The words of the training rows, joined by spaces."""
        return self.files.corpus(" ".join(words_of(row)) for row in self._train_rows)

    def describe(self) -> str:
        """A text with source, sizes, digest and classes."""
        return f"{self.corpus.describe()}; classes {', '.join(self.class_names)}"

    def sequences(
        self, split: str, tokenizer: TextTokenizer, block_size: int, limit: int | None
    ) -> Sequences:
        """The rows of a split, each cut after `block_size` tokens."""
        read = self._train_rows if split == "train" else self._read(split)
        words = [words_of(row) for row in read]
        labels = [self._labels(row, len(found)) for row, found in zip(read, words, strict=True)]
        pieces = iter(
            tokenizer.encode_once([piece for row in words for piece in (row[0], *(f" {w}" for w in row[1:]))])
        )
        rows = [_encoded(found, list(islice(pieces, len(found)))) for found in labels]
        num_long = sum(len(row.input_ids) > block_size for row in rows)
        cut = [EncodedRow(row.input_ids[:block_size], row.targets[:block_size]) for row in rows]
        remark = about_long_rows(num_long, len(rows), f"{block_size=}", "cut")
        return PaddedRows(cut, remark, limit, pad_id=tokenizer.eos_id)

    def _labels(self, row: Row, num_words: int) -> list[int]:
        where_from = f"of {self.files.train}" if self.given_names is None else "of class_names"
        return label_numbers(row, labels_of(row, num_words), self.class_names, where_from)

    @cached_property
    def _train_rows(self) -> list[Row]:
        return self._read("train")

    def _read(self, split: str) -> list[Row]:
        return self.files.read(split, ["tokens", "labels"])


def _encoded(labels: Sequence[int], pieces: Sequence[Ids]) -> EncodedRow:
    """A row of words, given the label and the token ids of each."""
    targets = first_token_labels(labels, [len(piece) for piece in pieces])
    return EncodedRow(torch.from_numpy(np.concatenate(pieces)).long(), torch.tensor(targets))
