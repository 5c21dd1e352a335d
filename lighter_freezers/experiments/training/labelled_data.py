"""TokenLabelDataModule and SequenceScoreDataModule without a Lightning base class; for both namespaces."""

import os
from collections.abc import Sequence

from lighter_freezers.arguments import at_least, count
from lighter_freezers.experiments.data.standard_library import standard_library
from lighter_freezers.experiments.data.tokenizer import TextTokenizer
from lighter_freezers.experiments.tasks.code_labels import CLASS_NAMES
from lighter_freezers.experiments.tasks.sequence_scores import DocumentationTask, ScoredTextsTask, cls_token
from lighter_freezers.experiments.tasks.task import Task
from lighter_freezers.experiments.tasks.token_classes import CodeClassesTask, LabelledWordsTask
from lighter_freezers.experiments.training.batch_data import TextBatchData, row_files

__all__ = ["SequenceScoreData", "TokenLabelData"]


class TokenLabelData(TextBatchData):
    """A TokenLabelDataModule without its base class; see `TokenLabelDataModule` for the arguments."""

    mode = "token_classifier"  # the mode of a GPT for these batches

    def __init__(
        self,
        train_file: str | os.PathLike[str] | None = None,
        val_file: str | os.PathLike[str] | None = None,
        test_file: str | os.PathLike[str] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        vocab_size: int = 1024,
        block_size: int = 128,
        batch_size: int = 16,
        num_train_sequences: int | None = None,
        num_val_sequences: int | None = None,
        num_test_sequences: int | None = None,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        limits = num_train_sequences, num_val_sequences, num_test_sequences
        files = row_files(train_file, val_file, test_file)
        super().__init__(
            files, tokenizer, vocab_size, block_size, batch_size, limits, seed, cache_dir, num_workers
        )
        self._given_names = _names(class_names)
        if self._given_names is not None and self._files is None:
            raise ValueError(
                f"class_names requires train_file. The standard library has these: {', '.join(CLASS_NAMES)}."
            )
        self._class_names = CLASS_NAMES if self._files is None else self._given_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers.

        Raises:
            RuntimeError: They are in a file that `setup` has not read yet.
        """
        if self._class_names is None:
            raise RuntimeError(
                "The class names are read from train_file by setup(). Let the Trainer call it, call it "
                "yourself, or give class_names."
            )
        return self._class_names

    @property
    def num_token_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def _task(self) -> Task[TextTokenizer]:
        if self._files is None:
            return CodeClassesTask(standard_library(), self._options.cache_dir)
        task = LabelledWordsTask(self._files, self._given_names)
        self._class_names = task.class_names
        return task


class SequenceScoreData(TextBatchData):
    """A SequenceScoreDataModule without its base class; see `SequenceScoreDataModule` for the arguments."""

    mode = "sequence_scorer"  # the mode of a GPT for these batches

    def __init__(
        self,
        train_file: str | os.PathLike[str] | None = None,
        val_file: str | os.PathLike[str] | None = None,
        test_file: str | os.PathLike[str] | None = None,
        *,
        cls_token_id: int | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        vocab_size: int = 1024,
        block_size: int = 128,
        batch_size: int = 16,
        num_train_sequences: int | None = None,
        num_val_sequences: int | None = None,
        num_test_sequences: int | None = None,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        num_workers: int = 0,
    ) -> None:
        limits = num_train_sequences, num_val_sequences, num_test_sequences
        block_size = at_least("block_size", block_size, 2)  # [CLS] and one token
        files = row_files(train_file, val_file, test_file)
        super().__init__(
            files, tokenizer, vocab_size, block_size, batch_size, limits, seed, cache_dir, num_workers
        )
        self._given_cls_token_id = count("cls_token_id", cls_token_id)

    @property
    def cls_token_id(self) -> int:
        """The first token of each sequence.

        Raises:
            RuntimeError: It follows the tokenizer's ids, and `setup` has not run yet.
        """
        if self._given_cls_token_id is not None:
            return self._given_cls_token_id
        return cls_token(self.tokenizer, None)

    @property
    def vocab_size(self) -> int:
        """The number of embeddings that a model needs: for the tokens and for [CLS]."""
        return max(self.tokenizer.vocab_size, self.cls_token_id + 1)

    def _task(self) -> Task[TextTokenizer]:
        if self._files is None:
            return DocumentationTask(standard_library(), self._options.cache_dir, self._given_cls_token_id)
        return ScoredTextsTask(self._files, self._given_cls_token_id)


def _names(class_names: object) -> tuple[str, ...] | None:
    """Check names of classes from YAML."""
    if class_names is None:
        return None
    if isinstance(class_names, str) or not isinstance(class_names, Sequence) or not class_names:
        raise TypeError(f"class_names must be a list of names such as [O, PERSON]. Got {class_names!r}.")
    for name in class_names:
        if not isinstance(name, str) or not name.strip():
            raise TypeError(
                f"class_names must be names. Got {name!r} ({type(name).__name__}). Put it in quotes."
            )
        if list(class_names).count(name) > 1:
            raise ValueError(f"class_names has {name!r} twice. Each class has one name.")
    return tuple(class_names)
