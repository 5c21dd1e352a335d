"""The user's own rows: one file for each split, and the training text for the tokenizer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lighter_freezers.experiments.data.corpus import Corpus
from lighter_freezers.experiments.data.rows import Row, read_rows

__all__ = ["RowFiles", "corpus_of_rows"]


@dataclass(frozen=True)
class RowFiles:
    """A JSONL or CSV file for each split.

    Args:
        train: Rows to train on.
        val: Rows to validate on.
        test: Rows to test on and to predict. None if there are none.
    """

    train: Path
    val: Path
    test: Path | None = None

    def read(self, split: str, fields: Sequence[str]) -> list[Row]:
        """The rows of `train`, `val` or `test`.

        Raises:
            ValueError: There is no file for the split, or it cannot be read.
        """
        file = {"train": self.train, "val": self.val, "test": self.test}[split]
        if file is None:
            raise ValueError(f"There is no {split} file. Give `{split}_file:` a .jsonl or .csv file.")
        return read_rows(file, fields)


def corpus_of_rows(texts: Iterable[str], files: RowFiles) -> Corpus:
    """The texts of the training rows as a corpus; a tokenizer must not learn from other splits."""
    return Corpus(train=tuple(texts), val=(), test=(), source=f"rows of {files.train}")
