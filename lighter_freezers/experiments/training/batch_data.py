"""The base of all data modules: reads the text, chooses a tokenizer, makes batches.

Subclasses define the text and its targets, a `Task`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic

from torch import Tensor

from lighter_freezers._log import log
from lighter_freezers.arguments import at_least
from lighter_freezers.engine.trainer_like import OfLightning
from lighter_freezers.experiments.data.batches import Sequences
from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.rows import RowFiles
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

__all__ = [
    "BatchData",
    "BatchOptions",
    "TextBatchData",
    "path_or_none",
    "row_files",
    "split_paths",
]

STANDARD_LIBRARY = "standard_library"
SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


@dataclass(frozen=True)
class BatchOptions:
    """The checked options that all data modules share; see `TextDataModule` for their meaning."""

    tokenizer: Path | None
    vocab_size: int
    block_size: int
    batch_size: int
    limits: Mapping[str, int | None]  # of each split
    seed: int
    cache_dir: Path | None
    num_workers: int


class BatchData(ABC, Generic[AnyTokenizer]):
    """Batches of sequences in an order that ranks share and checkpoints resume; see `TextDataModule`."""

    trainer: OfLightning
    more_sequences: ClassVar[str] = "raise num_{split}_sequences, lower block_size, or give more text"

    def __init__(
        self,
        files: RowFiles | None,
        tokenizer: object,
        vocab_size: object,
        block_size: object,
        batch_size: object,
        limits: Sequence[object],  # of train, val and test
        seed: object,
        cache_dir: object,
        num_workers: object,
    ) -> None:
        super().__init__()
        self._files = files
        self._options = BatchOptions(
            path_or_none("tokenizer", tokenizer),
            at_least("vocab_size", vocab_size, MIN_VOCAB_SIZE),
            at_least("block_size", block_size, 1),
            at_least("batch_size", batch_size, 1),
            {
                split: None if limit is None else at_least(f"num_{split}_sequences", limit, 1)
                for split, limit in zip(SPLITS, limits, strict=True)
            },
            at_least("seed", seed),
            path_or_none("cache_dir", cache_dir),
            at_least("num_workers", num_workers),
        )
        self._tokenizer: AnyTokenizer | None = None
        self._sequences: dict[str, Sequences] = {}

    def __str__(self) -> str:  # Lightning's expects a `DataLoader` and fails on our loaders
        """The sequences of each split that `setup` has made, a line each."""
        made = [f"{split}: {sequences.describe()}" for split, sequences in self._sequences.items()]
        return f"{type(self).__name__}\n" + ("\n".join(made) or "no text before setup()")

    @abstractmethod
    def _task(self) -> Task[AnyTokenizer]:
        """Read the text."""

    @abstractmethod
    def _load_tokenizer(self, task: Task[AnyTokenizer]) -> AnyTokenizer:
        """Load the tokenizer, or train and cache it."""

    @property
    def tokenizer(self) -> AnyTokenizer:
        """The tokenizer of this text.

        Raises:
            RuntimeError: `setup` has not run yet.
        """
        if self._tokenizer is None:
            raise RuntimeError(
                "The tokenizer exists after setup(). Let the Trainer call it, or call it yourself."
            )
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """The number of tokens: as requested, or fewer where the text is small."""
        return self.tokenizer.vocab_size

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of token ids; `<eos>` has none."""
        return self.tokenizer.decode(ids.tolist() if isinstance(ids, Tensor) else ids)

    def prepare_data(self) -> None:
        """Train the tokenizer and encode the text, or find both in the cache, in one process per machine.

        Without a Trainer, which knows what will run, only the tokenizer.
        """
        if self.trainer is not None:
            self.setup(self.trainer.state.fn)
        else:
            self._load_tokenizer(self._task())

    def setup(self, stage: str | None = None) -> None:
        """Read the text, load the tokenizer and make the sequences for the stage."""
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
                split, self._tokenizer, self._options.block_size, self._options.limits[split]
            )
            self._log(f"Text, {split}: {self._sequences[split].describe()}.")

    def train_dataloader(self) -> TrainingLoader | EvaluationLoader:
        """Batches in a random order for each epoch; the same batches repeatedly to overfit."""
        sequences, share = self._sequences["train"], self._share()
        batch_size = self._options.batch_size
        num_needed = batch_size * share.num_ranks
        if len(sequences) < num_needed:
            raise ValueError(
                f"A batch needs {num_needed} sequences ({batch_size=} on {share.num_ranks} "
                f"processes), but there are {len(sequences)} to train on. Lower batch_size, "
                f"{self.more_sequences.format(split='train')}."
            )
        is_overfitting = self.trainer is not None and bool(self.trainer.overfit_batches)
        order = EpochOrder(len(sequences), None if is_overfitting else self._options.seed)
        batches = Batches(order, batch_size, share, drop_last=True)
        loader = EvaluationLoader if is_overfitting else TrainingLoader
        return loader(sequences, batches, self._options.num_workers)

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
        batches = Batches(EpochOrder(len(sequences), None), self._options.batch_size, share, drop_last=False)
        return EvaluationLoader(sequences, batches, self._options.num_workers)

    def _splits(self) -> Sequence[str]:
        """The existing splits; the user's own rows may have no test."""
        return SPLITS[:2] if self._files is not None and self._files.test is None else SPLITS

    def _share(self) -> Share:
        """This process's share of the data."""
        kwargs = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return Share(0, 1) if kwargs is None else Share(kwargs["rank"], kwargs["num_replicas"])

    def _log(self, message: str) -> None:
        if self.trainer is None or self.trainer.is_global_zero:
            log.info(message)


class TextBatchData(BatchData[TextTokenizer]):
    """The base of data modules for a GPT of ours, whose tokenizer is a byte-level BPE."""

    def _load_tokenizer(self, task: Task[TextTokenizer]) -> TextTokenizer:
        """Load the tokenizer of a file, or that for the text or for the standard library."""
        if self._options.tokenizer is not None and str(self._options.tokenizer) != STANDARD_LIBRARY:
            return tokenizer_of_file(self._options.tokenizer, self._options.cache_dir)
        corpus = task.corpus if self._options.tokenizer is None else standard_library()
        return cached_tokenizer(corpus, self._options.vocab_size, self._options.cache_dir)


def row_files(train_file: object, val_file: object, test_file: object) -> RowFiles | None:
    """The user's own files; None if none is given.

    Raises:
        TypeError: One is not a path.
        ValueError: Some are given, but not those required for training.
    """
    train, val, test = split_paths(train_file, val_file, test_file)
    if train is None and val is None and test is None:
        return None
    if train is None or val is None:
        missing = "train_file" if train is None else "val_file"
        raise ValueError(
            f"Your own rows need train_file and val_file, and test_file to test or predict. Give {missing}."
        )
    return RowFiles(train, val, test)


def split_paths(*files: object) -> list[Path | None]:
    """Check `train_file`, `val_file` and `test_file` from YAML.

    Raises:
        TypeError: One is not a path.
    """
    return [path_or_none(f"{split}_file", file) for split, file in zip(SPLITS, files, strict=True)]


def path_or_none(argument: str, value: object) -> Path | None:
    """Check a path from YAML; None stays None.

    Raises:
        TypeError: It is not a path.
    """
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise TypeError(f"{argument} must be a path. Got {value!r} ({type(value).__name__}).")
    return Path(value).expanduser()
