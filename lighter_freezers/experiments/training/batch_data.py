"""What every data module of this package does: read, choose a tokenizer, give batches. Abstract.

Which text it is and what is asked about it, a `Task`, comes from the classes below it.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic

from torch import Tensor

from lighter_freezers._log import log
from lighter_freezers.arguments import count
from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.own_files import RowFiles
from lighter_freezers.experiments.data.sequences import Sequences
from lighter_freezers.experiments.data.standard_library import standard_library
from lighter_freezers.experiments.data.tokenizer import (
    MIN_VOCAB_SIZE,
    TextTokenizer,
    cached_tokenizer,
    tokenizer_of_file,
)
from lighter_freezers.experiments.tasks.task import AnyTokenizer, Task
from lighter_freezers.experiments.training.batch_loader import (
    Batches,
    EpochOrder,
    EvaluationLoader,
    Share,
    TrainingLoader,
)

__all__ = ["BatchData", "TextBatchData", "at_least", "path_or_none", "row_files"]

STANDARD_LIBRARY = "standard_library"
SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class BatchData(ABC, Generic[AnyTokenizer]):
    """Batches of sequences in an order that ranks share and a checkpoint resumes; see `TextDataModule`."""

    trainer: Any
    more_sequences: ClassVar[str] = "raise num_{split}_sequences, lower block_size, or give more text"

    def __init__(
        self,
        *,
        files: RowFiles | None,
        tokenizer: str | os.PathLike[str] | None,
        vocab_size: int,
        block_size: int,
        batch_size: int,
        limits: Sequence[int | None],
        seed: int,
        cache_dir: str | os.PathLike[str] | None,
        num_workers: int,
    ) -> None:
        super().__init__()
        self._files = files
        self._tokenizer_source = path_or_none("tokenizer", tokenizer)
        self._cache_dir = path_or_none("cache_dir", cache_dir)
        self._max_vocab_size = at_least("vocab_size", vocab_size, MIN_VOCAB_SIZE)
        self._block_size = at_least("block_size", block_size, 1)
        self._batch_size = at_least("batch_size", batch_size, 1)
        self._seed = at_least("seed", seed, 0)
        self._num_workers = at_least("num_workers", num_workers, 0)
        self._limits = {
            split: None if limit is None else at_least(f"num_{split}_sequences", limit, 1)
            for split, limit in zip(SPLITS, limits, strict=True)
        }
        self._tokenizer: AnyTokenizer | None = None
        self._sequences: dict[str, Sequences] = {}

    @abstractmethod
    def _task(self) -> Task[AnyTokenizer]:
        """Read the text."""

    @abstractmethod
    def _load_tokenizer(self, task: Task[AnyTokenizer]) -> AnyTokenizer:
        """Load the tokenizer, or train it and keep it."""

    @property
    def tokenizer(self) -> AnyTokenizer:
        """The tokenizer of this text.

        Raises:
            RuntimeError: `setup` has not run yet.
        """
        if self._tokenizer is None:
            raise RuntimeError(
                "The tokenizer is there after setup(). Let the Trainer call it, or call it yourself."
            )
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """How many tokens there are: what was asked for, or fewer where the text is small."""
        return self.tokenizer.vocab_size

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text that token ids stand for; `<eos>` stands for none."""
        return self.tokenizer.decode(ids.tolist() if isinstance(ids, Tensor) else ids)

    def prepare_data(self) -> None:
        """Train the tokenizer, or find it in the cache; one process of a machine does this."""
        task = self._task()
        self._load_tokenizer(task)
        task.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the text, load the tokenizer and make the sequences that the stage needs."""
        needed = SPLITS_OF_STAGE.get(stage, ()) if stage is not None else self._splits()
        missing = [split for split in needed if split not in self._sequences]
        if self._tokenizer is not None and not missing:
            return
        task = self._task()
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer(task)
            self._log(f"Text: {task.describe()}; {self._tokenizer.vocab_size} tokens.")
        for split in missing:
            self._sequences[split] = task.sequences(
                split, self._tokenizer, self._block_size, self._limits[split]
            )
            self._log(f"Text, {split}: {self._sequences[split].describe()}.")

    def train_dataloader(self) -> TrainingLoader | EvaluationLoader:
        """Batches in an order drawn anew for each epoch; the same ones again and again to overfit."""
        sequences, share = self._sequences["train"], self._share()
        num_needed = self._batch_size * share.num_ranks
        if len(sequences) < num_needed:
            raise ValueError(
                f"A batch needs {num_needed} sequences (batch_size={self._batch_size} on {share.num_ranks} "
                f"processes), but there are {len(sequences)} to train on. Lower batch_size, "
                f"{self.more_sequences.format(split='train')}."
            )
        is_overfitting = self.trainer is not None and bool(self.trainer.overfit_batches)
        order = EpochOrder(len(sequences), None if is_overfitting else self._seed)
        batches = Batches(order, self._batch_size, share, drop_last=True)
        loader = EvaluationLoader if is_overfitting else TrainingLoader
        return loader(sequences, batches, self._num_workers)

    def val_dataloader(self) -> EvaluationLoader:
        """Batches in the order of the text."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> EvaluationLoader:
        """Batches in the order of the text."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> EvaluationLoader:
        """The batches of the test."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> EvaluationLoader:
        sequences, share = self._sequences[split], self._share()
        num_left_out = len(sequences) % share.num_ranks
        if num_left_out == len(sequences):
            raise ValueError(
                f"There are {len(sequences)} sequences in {split} for {share.num_ranks} processes. To have "
                f"one for each, {self.more_sequences.format(split=split)}."
            )
        if num_left_out:
            self._log(
                f"Text, {split}: the last {num_left_out} of {len(sequences)} sequences are left out, so that "
                f"{share.num_ranks} processes have equally many."
            )
        batches = Batches(EpochOrder(len(sequences), None), self._batch_size, share, drop_last=False)
        return EvaluationLoader(sequences, batches, self._num_workers)

    def _splits(self) -> Sequence[str]:
        """Those that there are; rows of the user's own may have no test."""
        return SPLITS[:2] if self._files is not None and self._files.test is None else SPLITS

    def _share(self) -> Share:
        """This process among those that each take other data."""
        kwargs = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return Share(0, 1) if kwargs is None else Share(kwargs["rank"], kwargs["num_replicas"])

    def _log(self, message: str) -> None:
        if self.trainer is None or self.trainer.is_global_zero:
            log.info(message)


class TextBatchData(BatchData[TextTokenizer]):
    """Batches for a GPT of ours, whose tokenizer is a byte-level BPE. Abstract too."""

    def _load_tokenizer(self, task: Task[TextTokenizer]) -> TextTokenizer:
        """That of the file given, or one for the text itself or for the standard library."""
        if self._tokenizer_source is not None and str(self._tokenizer_source) != STANDARD_LIBRARY:
            return tokenizer_of_file(self._tokenizer_source)
        corpus = task.corpus if self._tokenizer_source is None else standard_library()
        return cached_tokenizer(corpus, self._max_vocab_size, self._cache_dir)


def row_files(train_file: object, val_file: object, test_file: object) -> RowFiles | None:
    """The user's own files; None if none is given.

    Raises:
        TypeError: One is no path.
        ValueError: Some are given, but not those that training needs.
    """
    train, val, test = (
        path_or_none(f"{split}_file", file)
        for split, file in zip(SPLITS, (train_file, val_file, test_file), strict=True)
    )
    if train is None and val is None and test is None:
        return None
    if train is None or val is None:
        missing = "train_file" if train is None else "val_file"
        raise ValueError(
            f"Your own rows need train_file and val_file, and test_file to test or predict. Give {missing}."
        )
    return RowFiles(train, val, test)


def path_or_none(argument: str, value: object) -> Path | None:
    """Check a path from YAML; None stays None.

    Raises:
        TypeError: It is no path.
    """
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise TypeError(f"{argument} must be a path. Got {value!r} ({type(value).__name__}).")
    return Path(value).expanduser()


def at_least(argument: str, value: object, minimum: int) -> int:
    """Check a whole number from YAML that has a least value.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is None or too small.
    """
    checked = count(argument, value)
    if checked is None or checked < minimum:
        raise ValueError(f"{argument} must be at least {minimum}. Got {value}.")
    return checked
