"""What a TextDataModule does, whichever Lightning namespace its base class comes from."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lighter_freezers._log import log
from lighter_freezers.arguments import count
from lighter_freezers.tasks.corpus import SPLITS, Corpus
from lighter_freezers.tasks.standard_library import standard_library
from lighter_freezers.tasks.text_files import text_files
from lighter_freezers.tasks.tokenizer import MIN_VOCAB_SIZE, TextTokenizer, cached_tokenizer
from lighter_freezers.tasks.windows import TokenWindows
from lighter_freezers.training._batch_loader import (
    Batches,
    EpochOrder,
    EvaluationLoader,
    Share,
    TrainingLoader,
)

__all__ = ["TextData"]

SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


class TextData:
    """Everything of a TextDataModule but its base class; see `TextDataModule` for the arguments."""

    trainer: Any

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
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self._text = _path("text", text)
        self._cache_dir = _path("cache_dir", cache_dir)
        self._max_vocab_size = _at_least("vocab_size", vocab_size, MIN_VOCAB_SIZE)
        self._block_size = _at_least("block_size", block_size, 1)
        self._batch_size = _at_least("batch_size", batch_size, 1)
        self._seed = _at_least("seed", seed, 0)
        self._num_workers = _at_least("num_workers", num_workers, 0)
        limits = (num_train_sequences, num_val_sequences, num_test_sequences)
        self._limits = {
            split: None if limit is None else _at_least(f"num_{split}_sequences", limit, 1)
            for split, limit in zip(SPLITS, limits, strict=True)
        }
        self._tokenizer: TextTokenizer | None = None
        self._windows: dict[str, TokenWindows] = {}

    @property
    def tokenizer(self) -> TextTokenizer:
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
        cached_tokenizer(self._corpus(), self._max_vocab_size, self._cache_dir)

    def setup(self, stage: str | None = None) -> None:
        """Read the text, load the tokenizer and cut what the stage needs into windows."""
        needed = SPLITS_OF_STAGE.get(stage, ()) if stage is not None else SPLITS
        missing = [split for split in needed if split not in self._windows]
        if self._tokenizer is not None and not missing:
            return
        corpus = self._corpus()
        if self._tokenizer is None:
            self._tokenizer = cached_tokenizer(corpus, self._max_vocab_size, self._cache_dir)
            self._log(f"Text: {corpus.describe()}; {self.vocab_size} tokens.")
        for split in missing:
            self._windows[split] = self._cut(corpus, split)
            self._log(f"Text, {split}: {len(self._windows[split]):,} sequences of {self._block_size} tokens.")

    def train_dataloader(self) -> TrainingLoader | EvaluationLoader:
        """Batches in an order drawn anew for each epoch; the same ones again and again to overfit."""
        windows, share = self._windows["train"], self._share()
        num_needed = self._batch_size * share.num_ranks
        if len(windows) < num_needed:
            raise ValueError(
                f"A batch needs {num_needed} sequences (batch_size={self._batch_size} on {share.num_ranks} "
                f"processes), but there are {len(windows)} to train on. Lower batch_size or block_size, "
                "raise num_train_sequences, or give a longer text."
            )
        is_overfitting = self.trainer is not None and bool(self.trainer.overfit_batches)
        order = EpochOrder(len(windows), None if is_overfitting else self._seed)
        batches = Batches(order, self._batch_size, share, drop_last=True)
        loader = EvaluationLoader if is_overfitting else TrainingLoader
        return loader(windows, batches, self._num_workers)

    def val_dataloader(self) -> EvaluationLoader:
        """Batches in the order of the text."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> EvaluationLoader:
        """Batches in the order of the text."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> EvaluationLoader:
        windows, share = self._windows[split], self._share()
        num_left_out = len(windows) % share.num_ranks
        if num_left_out == len(windows):
            raise ValueError(
                f"There are {len(windows)} sequences in {split} for {share.num_ranks} processes. "
                f"Raise num_{split}_sequences or lower block_size."
            )
        if num_left_out:
            self._log(
                f"Text, {split}: the last {num_left_out} of {len(windows)} sequences are left out, so that "
                f"{share.num_ranks} processes have equally many."
            )
        batches = Batches(EpochOrder(len(windows), None), self._batch_size, share, drop_last=False)
        return EvaluationLoader(windows, batches, self._num_workers)

    def _corpus(self) -> Corpus:
        return standard_library() if self._text is None else text_files(self._text)

    def _cut(self, corpus: Corpus, split: str) -> TokenWindows:
        windows = TokenWindows(corpus.split(split), self.tokenizer, self._block_size, self._limits[split])
        if len(windows) == 0:
            raise ValueError(
                f"The {split} text has {windows.num_tokens} tokens: too few for one sequence of block_size="
                f"{self._block_size} and the token after it. Lower block_size, or give a longer text."
            )
        return windows

    def _share(self) -> Share:
        """This process among those that each take other data."""
        kwargs = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return Share(0, 1) if kwargs is None else Share(kwargs["rank"], kwargs["num_replicas"])

    def _log(self, message: str) -> None:
        if self.trainer is None or self.trainer.is_global_zero:
            log.info(message)


def _path(argument: str, value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise TypeError(f"{argument} must be a path. Got {value!r} ({type(value).__name__}).")
    return Path(value).expanduser()


def _at_least(argument: str, value: object, minimum: int) -> int:
    checked = count(argument, value)
    if checked is None or checked < minimum:
        raise ValueError(f"{argument} must be at least {minimum}. Got {value}.")
    return checked
