"""The TextDataModule without a Lightning base class; used by both namespaces."""

import os

from lighter_freezers.experiments.data.standard_library import standard_library
from lighter_freezers.experiments.data.text_files import text_files
from lighter_freezers.experiments.data.tokenizer import TextTokenizer
from lighter_freezers.experiments.tasks.language_model import CorpusTask, RowTextsTask
from lighter_freezers.experiments.tasks.task import Task
from lighter_freezers.experiments.training.batch_data import (
    TextBatchData,
    path_or_none,
    row_files,
)

__all__ = ["TextData"]


class TextData(TextBatchData):
    """A TextDataModule without its base class; see `TextDataModule` for the arguments."""

    mode = "language_model"  # the mode of a GPT for these batches

    def __init__(
        self,
        text: str | os.PathLike[str] | None = None,
        vocab_size: int = 1024,
        block_size: int = 128,
        batch_size: int = 16,
        num_train_sequences: int | None = None,
        *,
        num_val_sequences: int | None = None,
        num_test_sequences: int | None = None,
        train_file: str | os.PathLike[str] | None = None,
        val_file: str | os.PathLike[str] | None = None,
        test_file: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        self._text = path_or_none("text", text)
        files = row_files(train_file, val_file, test_file)
        if self._text is not None and files is not None:
            raise ValueError(
                "Give either `text:`, .txt files that are split for you, or `train_file:` and `val_file:`, "
                "files of rows."
            )
        limits = num_train_sequences, num_val_sequences, num_test_sequences
        super().__init__(
            files, tokenizer, vocab_size, block_size, batch_size, limits, seed, cache_dir, num_workers
        )

    def _task(self) -> Task[TextTokenizer]:
        if self._files is not None:
            return RowTextsTask(self._files)
        return CorpusTask(standard_library() if self._text is None else text_files(self._text))
