"""The GenerationDataModule without a Lightning base class; used by both namespaces."""

import os
from collections.abc import Sequence

from lighter_freezers.arguments import at_least, choice
from lighter_freezers.experiments.causal_models import Tokenizer
from lighter_freezers.experiments.data.batches import Batch
from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.prompt_tokenizer import (
    PromptTokenizer,
    own_tokenizer,
    prompt_tokenizer,
)
from lighter_freezers.experiments.data.prompts import PromptedTask
from lighter_freezers.experiments.data.standard_library import standard_library
from lighter_freezers.experiments.data.tokenizer import cached_tokenizer
from lighter_freezers.experiments.evaluation.answer_loss import lean_batch
from lighter_freezers.experiments.evaluation.metrics import check_metric_names
from lighter_freezers.experiments.tasks.generation_tasks import task_named
from lighter_freezers.experiments.tasks.prompt_splits import PromptedSplits
from lighter_freezers.experiments.tasks.task import Task
from lighter_freezers.experiments.tasks.task_files import SplitFiles, default_source, split_files
from lighter_freezers.experiments.training.batch_data import (
    STANDARD_LIBRARY,
    BatchData,
    split_paths,
)

__all__ = ["GenerationData"]

BAD_ROWS = ("error", "drop")


class GenerationData(BatchData[PromptTokenizer]):
    """A GenerationDataModule without its base class; see `GenerationDataModule` for the arguments."""

    more_sequences = "raise num_{split}_sequences, or give more rows"

    def __init__(
        self,
        task: str | PromptedTask = "docstrings",
        source: str | os.PathLike[str] | None = None,
        *,
        train_file: str | os.PathLike[str] | None = None,
        val_file: str | os.PathLike[str] | None = None,
        test_file: str | os.PathLike[str] | None = None,
        tokenizer: Tokenizer = None,
        vocab_size: int = 1024,
        max_length: int = 512,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
        num_train_sequences: int | None = None,
        num_val_sequences: int | None = None,
        num_test_sequences: int | None = None,
        bad_rows: str = "error",
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        self._generation_task = task_named(task)
        check_metric_names(self._generation_task.metrics)
        self._max_new_tokens = self._generation_task.max_new_tokens
        if max_new_tokens is not None:
            self._max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)
        is_path = tokenizer is None or isinstance(tokenizer, (str, os.PathLike))
        limits = num_train_sequences, num_val_sequences, num_test_sequences
        block_size = _length(max_length, self._max_new_tokens)
        path = tokenizer if is_path else None
        super().__init__(None, path, vocab_size, block_size, batch_size, limits, seed, cache_dir, num_workers)
        self._given_tokenizer = None if is_path else prompt_tokenizer(tokenizer)
        self._drops_bad = choice("bad_rows", bad_rows, BAD_ROWS) == "drop"
        self._own_files = split_paths(train_file, val_file, test_file)
        self._source = _source(source, self._generation_task, any(self._own_files))

    @property
    def task(self) -> PromptedTask:
        """The task, with its name and metrics."""
        return self._generation_task

    @property
    def max_new_tokens(self) -> int:
        """Tokens to generate at most, including the end token."""
        return self._max_new_tokens

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_id

    def describe(self) -> str:
        """Task, source and a digest of the data, for a results file; downloads the data if needed."""
        return self._task().describe()

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> dict[str, object]:
        """Prepare a batch on the host so that the model does less work; called by the Trainer."""
        return lean_batch(batch)

    def _task(self) -> PromptedSplits:
        return PromptedSplits(
            self._generation_task,
            self._files_of_splits(),
            self._max_new_tokens,
            self._drops_bad,
            self._options.cache_dir,
        )

    def _files_of_splits(self) -> SplitFiles:
        if self._source is not None:
            return split_files(self._generation_task, self._source, self._options.cache_dir)
        train, val, test = (() if file is None else (file,) for file in self._own_files)
        names = ", ".join(str(file) for file in self._own_files if file is not None)
        return SplitFiles(train, val, test, names)

    def _load_tokenizer(self, task: Task[PromptTokenizer]) -> PromptTokenizer:
        """Load the given tokenizer, or that for the training rows or for the standard library."""
        if self._given_tokenizer is not None:
            return self._given_tokenizer
        asked = None if self._options.tokenizer is None else str(self._options.tokenizer)
        if asked is not None and asked != STANDARD_LIBRARY:
            return prompt_tokenizer(asked)
        is_library = asked == STANDARD_LIBRARY or self._source == STANDARD_LIBRARY
        corpus = standard_library() if is_library else task.corpus
        return own_tokenizer(cached_tokenizer(corpus, self._options.vocab_size, self._options.cache_dir))

    def _splits(self) -> Sequence[str]:
        """The splits that have rows."""
        files = self._files_of_splits()
        return [split for split in SPLITS if files.of(split) or (split == "val" and files.train)]


def _length(max_length: object, max_new_tokens: int) -> int:
    """Check that there is room for a prompt before the answer."""
    checked = at_least("max_length", max_length, 2)
    if checked <= max_new_tokens:
        raise ValueError(
            f"max_length={checked} leaves no room for a prompt before the {max_new_tokens} tokens of an "
            "answer. Raise max_length, or lower max_new_tokens."
        )
    return checked


def _source(source: object, task: PromptedTask, has_files: bool) -> str | None:
    """Check the source of the rows; None means files of the user's own."""
    if source is not None and not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be a name or a path. Got {source!r} ({type(source).__name__}).")
    if source is not None and has_files:
        raise ValueError("Give either `source:` or `train_file:`, `val_file:` and `test_file:`.")
    if has_files:
        return None
    return default_source(task) if source is None else os.fspath(source)
