"""Batches of prompts with answers for training, or of prompts alone for generation, encoded in advance."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lighter_freezers.experiments.data.batches import IGNORE_INDEX, Batch, Sequences, padded, padded_inputs
from lighter_freezers.experiments.data.prompt_encoding import (
    EncodedPrompt,
    NoRoom,
    encode_answers,
    encode_prompts,
)
from lighter_freezers.experiments.data.prompt_tokenizer import PromptTokenizer
from lighter_freezers.experiments.data.prompts import PromptedRow

__all__ = ["AnswerSequences", "PromptSequences", "Room"]

CHUNK = 8192  # rows to encode at a time: token ids as Python integers need much memory


@dataclass(frozen=True)
class Room:
    """The lengths that sequences may have.

    Args:
        max_length: Tokens of a prompt with its answer, at most.
        max_new_tokens: How many of them are reserved for a generated answer.
        drop_long: Leave out rows that are too long even without their context, instead of an error.
    """

    max_length: int
    max_new_tokens: int
    drop_long: bool = False


class AnswerSequences(Sequences):
    """Prompts with their answers, for training or for the perplexity.

    A batch is padded on the right: `input_ids` (B, T), `attention_mask` (B, T), 1 for real tokens, and
    `labels` (B, T), equal to the tokens of the answer and its end, and -100 elsewhere. They are not shifted:
    transformers' models do that.

    Args:
        rows: Prompts and answers.
        tokenizer: Encodes them.
        room: Their length limits.
        remark: How else they were changed, for the log line; empty if they were not.

    Raises:
        ValueError: A row is too long even without its context, or all were left out.
    """

    def __init__(
        self, rows: Sequence[PromptedRow], tokenizer: PromptTokenizer, room: Room, remark: str = ""
    ) -> None:
        self._remark = remark
        self._pad_id = tokenizer.eos_id
        self._tally = _Tally(room)
        self._ids: list[Tensor] = []
        self._num_answer: list[int] = []
        self.numbers: list[int] = []  # of the rows that were kept
        for number, one in self._tally.those_with_room(rows, _in_chunks(rows, tokenizer, room.max_length)):
            self.numbers.append(number)
            self._ids.append(torch.tensor(one.ids, dtype=torch.int32))
            self._num_answer.append(one.num_answer)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The batch of these B rows."""
        ids = [self._ids[index].long() for index in indices]
        labels = [row.clone() for row in ids]
        for row, index in zip(labels, indices, strict=True):
            row[: len(row) - self._num_answer[index]] = IGNORE_INDEX
        return {
            **padded_inputs(ids, self._pad_id),
            "labels": padded(labels, IGNORE_INDEX),  # (B, T)
        }

    def describe(self) -> str:
        """As `41 rows of 31 to 256 tokens, of which 4 to 40 are the answer's; rows with a cut context: 7`."""
        answers = f"of which {_range_of(self._num_answer)} are the answer's"
        done = f"{self._tally.describe()}{self._remark}"
        return f"{len(self):,} rows of {_range_of(map(len, self._ids))} tokens, {answers}; {done}"


class PromptSequences(Sequences):
    """Prompts alone, each question once, for generation; with references for scoring.

    A batch is padded on the left: `input_ids` (B, T) and `attention_mask` (B, T), 1 for real tokens. It also
    has `prompts`, the B encoded texts, `references`, all correct answers of each, and `answers`, a batch of
    `AnswerSequences` of all rows of these questions.

    Args:
        groups: The rows of each question.
        tokenizer: Encodes them.
        room: Their length limits. A prompt leaves room for the generated tokens.
        remark: How else they were changed, for the log line; empty if they were not.

    Raises:
        ValueError: A prompt is too long even without its context, or all were left out.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[PromptedRow]],
        tokenizer: PromptTokenizer,
        room: Room,
        remark: str = "",
    ) -> None:
        self._remark = remark
        self._pad_id = tokenizer.eos_id
        self._tally = _Tally(room)
        self._scored = AnswerSequences([row for group in groups for row in group], tokenizer, room)
        question_of = [number for number, group in enumerate(groups) for _ in group]
        scored: list[list[int]] = [[] for _ in groups]  # for each question its rows in `_scored`
        for place, number in enumerate(self._scored.numbers):
            scored[question_of[number]].append(place)
        self._prompts: list[str] = []
        self._references: list[tuple[str, ...]] = []
        self._ids: list[Tensor] = []
        self._answers: list[list[int]] = []  # the rows of each question in `answers`
        rows = [group[0] for group in groups]
        encoded = _in_chunks(rows, tokenizer, room.max_length - room.max_new_tokens, alone=True)
        for number, one in self._tally.those_with_room(rows, encoded):
            if scored[number]:
                self._prompts.append(one.prompt)
                self._references.append(rows[number].references)
                self._ids.append(torch.tensor(one.ids, dtype=torch.int32))
                self._answers.append(scored[number])

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The batch of these B questions."""
        ids = [self._ids[index].long() for index in indices]
        return {
            **padded_inputs(ids, self._pad_id, side="left"),
            "prompts": [self._prompts[index] for index in indices],
            "references": [self._references[index] for index in indices],
            "answers": self._scored[[number for index in indices for number in self._answers[index]]],
        }

    def describe(self) -> str:
        """As `63 prompts of 31 to 128 tokens, answers known to each: 1 to 12; rows with a cut context: 0`."""
        references = f"answers known to each: {_range_of(map(len, self._references))}"
        done = f"{self._tally.describe()}{self._remark}"
        return f"{len(self):,} prompts of {_range_of(map(len, self._ids))} tokens, {references}; {done}"


Encoded = Iterator[tuple[int, EncodedPrompt | NoRoom]]


def _in_chunks(
    rows: Sequence[PromptedRow], tokenizer: PromptTokenizer, max_length: int, alone: bool = False
) -> Encoded:
    """Encode all rows in chunks; yields each with its index."""
    encode = encode_prompts if alone else encode_answers
    for first in range(0, len(rows), CHUNK):
        yield from enumerate(encode(rows[first : first + CHUNK], tokenizer, max_length), start=first)


class _Tally:
    """Counts rows that are cut and rows that do not fit; refuses the latter unless they may be dropped."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._num_cut = 0
        self._num_left_out = 0

    def those_with_room(
        self, rows: Sequence[PromptedRow], encoded: Encoded
    ) -> Iterator[tuple[int, EncodedPrompt]]:
        """The encoded rows, without those that are too long."""
        for number, one in encoded:
            if isinstance(one, EncodedPrompt):
                self._num_cut += one.is_cut
                yield number, one
            elif not self._room.drop_long:
                raise ValueError(f"{rows[number].where}: {self._too_long(one)}")
            else:
                self._num_left_out += 1
        if self._num_left_out == len(rows):
            raise ValueError(f"All {len(rows)} rows are too long for max_length={self._room.max_length}.")

    def _too_long(self, one: NoRoom) -> str:
        return (
            f"the row needs {one.num_needed} tokens even without its context, more than the limit "
            f"(max_length={self._room.max_length}, of which {self._room.max_new_tokens} are reserved for a "
            "generated answer). Raise max_length, or leave such rows out with bad_rows: drop."
        )

    def describe(self) -> str:
        left_out = f"; rows too long and left out: {self._num_left_out}" if self._num_left_out else ""
        return f"rows with a cut context: {self._num_cut}{left_out}"


def _range_of(numbers: Iterable[int]) -> str:
    """A text such as `4 to 40`, or `4` if all are equal."""
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
