"""The training, validation and test rows of a generation task, as sequences of tokens; a `Task`."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lighter_freezers.experiments.data.batches import Sequences, evenly_spread
from lighter_freezers.experiments.data.cache import cache_folder
from lighter_freezers.experiments.data.corpus import SPLITS, Corpus
from lighter_freezers.experiments.data.prompt_batches import AnswerSequences, PromptSequences, Room
from lighter_freezers.experiments.data.prompt_tokenizer import PromptTokenizer, kept_tokenizer
from lighter_freezers.experiments.data.prompts import (
    LoadedRows,
    PromptedRow,
    PromptedTask,
    held_out,
    load_rows,
    questions,
)
from lighter_freezers.experiments.tasks.task_files import SplitFiles

__all__ = ["PromptedSplits"]


@dataclass(frozen=True)
class PromptedSplits:
    """The splits of a task's files. Without a validation file, a tenth of the training rows is held out.

    Args:
        task: Defines the rows.
        files: The files of each split.
        max_new_tokens: Tokens reserved after a prompt for its generated answer.
        drop_bad: Leave out invalid rows and rows that do not fit, instead of raising an error for the first.
        cache_dir: The cache folder for encoded rows. None means that of this package.
    """

    task: PromptedTask
    files: SplitFiles
    max_new_tokens: int
    drop_bad: bool = False
    cache_dir: Path | None = None

    @cached_property
    def corpus(self) -> Corpus:
        """The prompts with their answers in the training rows."""
        rows, _ = self._rows("train")
        return Corpus(tuple(row.prompt + row.target for row in rows), (), (), self.files.source)

    def describe(self) -> str:
        """A text with task, source, and a digest of all files."""
        sha = hashlib.sha256()
        for split in SPLITS:
            for file in self.files.of(split):
                sha.update(file.read_bytes())
        return f"{self.task.name}, {self.files.source}; digest {sha.hexdigest()[:16]}"

    def sequences(
        self, split: str, tokenizer: PromptTokenizer, block_size: int, limit: int | None
    ) -> Sequences:
        """The rows of `train` or `val` with their answers; the questions of `test`, each once.

        Args:
            split: `train`, `val` or `test`.
            tokenizer: Encodes prompts and answers.
            block_size: Tokens of a prompt with its answer, at most.
            limit: How many to keep, spread evenly. None keeps all.

        Raises:
            ValueError: There is no such split, or a row is invalid.
        """
        rows, remark = self._rows(split)
        room = Room(block_size, self.max_new_tokens, self.drop_bad)
        tokenizer = kept_tokenizer(tokenizer, cache_folder(self.cache_dir))
        if split == "test":
            groups = questions(rows)
            kept = [groups[index] for index in evenly_spread(len(groups), limit).tolist()]
            return PromptSequences(kept, tokenizer, room, remark)
        chosen = [rows[index] for index in evenly_spread(len(rows), limit).tolist()]
        return AnswerSequences(chosen, tokenizer, room, remark)

    def _rows(self, split: str) -> tuple[tuple[PromptedRow, ...], str]:
        """The rows of a split, and a remark about them."""
        if split == "val" and not self.files.val and self.files.train:
            return self._held_out[1], "; held out from the training rows"
        if not self.files.of(split):
            raise ValueError(
                f"{self.task.name}: there is no {split} file in {self.files.source}. Give `{split}_file:` a "
                ".jsonl, .csv or .parquet file."
            )
        loaded = self._loaded(split)
        if split == "train" and not self.files.val:
            return self._held_out[0], f"{self._about(loaded)}; a tenth is held out to validate on"
        return loaded.rows, self._about(loaded) + self._about_overlap(split)

    @cached_property
    def _held_out(self) -> tuple[tuple[PromptedRow, ...], tuple[PromptedRow, ...]]:
        return held_out(self._loaded("train").rows)

    @cached_property
    def _read(self) -> dict[str, LoadedRows]:
        return {}

    def _loaded(self, split: str) -> LoadedRows:
        if split not in self._read:
            self._read[split] = load_rows(self.task, self.files.of(split), self.drop_bad)
        return self._read[split]

    def _about(self, loaded: LoadedRows) -> str:
        remark = ""
        if loaded.num_without_answer:
            remark += f"; rows left out, {self.task.left_out}: {loaded.num_without_answer}"
        if loaded.num_bad:
            remark += f"; bad rows left out: {loaded.num_bad}, the first: {loaded.first_error}"
        return remark

    def _about_overlap(self, split: str) -> str:
        """A remark on prompts of the split that are in the training rows too, if these were read."""
        if split == "train" or "train" not in self._read:
            return ""
        learnt = {row.prompt for row in self._loaded("train").rows}
        num_shared = len({row.prompt for row in self._loaded(split).rows} & learnt)
        return f"; prompts that are in the training rows too: {num_shared}" if num_shared else ""
