"""Sequences of tokens as batches: windows of a text, rows of a file, labels of tokens, and padding.

The only place that writes the target of ignored positions, and that pads.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from lighter_freezers.experiments.data.tokenizer import TextTokenizer

__all__ = [
    "IGNORE_INDEX",
    "UNLABELLED",
    "Batch",
    "EncodedRow",
    "PaddedRows",
    "Sequences",
    "TokenWindows",
    "Windows",
    "about_long_rows",
    "attention_mask",
    "evenly_spread",
    "first_token_labels",
    "padded",
    "padded_inputs",
    "token_labels",
    "window_starts",
]

IGNORE_INDEX = -100  # the default of torch's cross-entropy
UNLABELLED = 255  # a character without a class, such as white space outside strings

Offsets = npt.NDArray[np.int64]
Side = Literal["left", "right"]


def token_labels(classes: npt.NDArray[np.uint8], begins: Offsets, ends: Offsets) -> Offsets:
    """The class of each token: that of its first character that has one.

    Args:
        classes: The class of each character of a text, or UNLABELLED.
        begins: Where each token begins in the text, (N,).
        ends: Where it ends, the first character after it, (N,).

    Returns:
        Classes (N,); IGNORE_INDEX for a token without a labelled character.
    """
    places = np.where(classes == UNLABELLED, len(classes), np.arange(len(classes)))
    next_labelled = np.minimum.accumulate(places[::-1])[::-1]  # (characters,)
    firsts = np.append(next_labelled, len(classes))[begins]  # (N,)
    found = np.append(classes, UNLABELLED)[firsts].astype(np.int64)
    return np.where(firsts < ends, found, IGNORE_INDEX)


def first_token_labels(labels: Sequence[int], num_tokens: Sequence[int]) -> list[int]:
    """The labels of the tokens of words: a word's first token has its label, the others are ignored.

    Args:
        labels: The class of each word.
        num_tokens: The number of tokens of each word, at least 1.
    """
    return [
        value
        for label, count in zip(labels, num_tokens, strict=True)
        for value in (label, *[IGNORE_INDEX] * (count - 1))
    ]


def padded(rows: Sequence[Tensor], fill: int, side: Side = "right") -> Tensor:
    """Pad rows of up to T numbers to one (B, T) tensor."""
    return pad_sequence(list(rows), batch_first=True, padding_value=fill, padding_side=side)


def padded_inputs(rows: Sequence[Tensor], fill: int, side: Side = "right") -> dict[str, Tensor]:
    """Pad rows of up to T tokens to `input_ids` and `attention_mask`, 1 for real tokens, (B, T) each."""
    is_real = padded([torch.ones_like(row) for row in rows], 0, side)
    return {"input_ids": padded(rows, fill, side), "attention_mask": is_real}


def attention_mask(rows: Sequence[Tensor]) -> Tensor | None:
    """The mask of real positions in padded rows, (B, T) bool; None where all are."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    if bool((lengths == longest).all()):
        return None
    return torch.arange(longest) < lengths[:, None]


Batch: TypeAlias = Mapping[str, Any]  # tensors by name; texts too where answers are generated


class Sequences(Dataset[Batch], ABC):
    """A data set that returns a whole batch for a list of numbers."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of sequences."""

    @abstractmethod
    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The batch of these sequences."""

    @abstractmethod
    def describe(self) -> str:
        """Their number and lengths, for a log line."""


def evenly_spread(total: int, limit: int | None) -> Tensor:
    """The numbers of at most `limit` of `total` items, spread evenly; None takes all."""
    kept = total if limit is None else min(limit, total)
    return torch.arange(kept) * total // max(kept, 1)


def window_starts(num_tokens: int, block_size: int, num_windows: int | None) -> Tensor:
    """The starts of adjacent windows in a stream of tokens, each with the token after it.

    An incomplete window at the end is left out.
    """
    return evenly_spread((num_tokens - 1) // block_size, num_windows) * block_size


@dataclass(frozen=True)
class EncodedRow:
    """One sequence.

    Args:
        input_ids: Its tokens, (T,).
        targets: A target for each token, (T,), or one for the row, ().
        num_bytes: The bytes of text in the targets. None where they are not needed.
    """

    input_ids: Tensor
    targets: Tensor
    num_bytes: int | None = None


class PaddedRows(Sequences):
    """Sequences of different lengths, indexed by lists of their numbers.

    A batch has `attention_mask` (B, T), True for real tokens, only if one of its rows is shorter than
    another. Positions after the end of a row are ignored as targets.

    Args:
        rows: The sequences, at least one.
        remark: How they were changed, for the log line; empty if they were not.
        limit: How many to keep, spread evenly over the file. None keeps all.
        pad_id: The token after the end of a row; it is masked.
    """

    def __init__(self, rows: Sequence[EncodedRow], remark: str, limit: int | None, pad_id: int) -> None:
        self._rows = [rows[index] for index in evenly_spread(len(rows), limit).tolist()]
        self._remark = remark
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The batch of these B rows, as long as the longest: input_ids, targets and, if needed, a mask."""
        rows = [self._rows[index] for index in indices]
        tokens = [row.input_ids for row in rows]
        targets = [row.targets for row in rows]
        are_per_token = targets[0].ndim == 1
        batch = {
            "input_ids": padded(tokens, self._pad_id),  # (B, T)
            "targets": padded(targets, IGNORE_INDEX) if are_per_token else torch.stack(targets),
        }
        if rows[0].num_bytes is not None:
            batch["num_bytes"] = torch.tensor([row.num_bytes for row in rows])  # (B,)
        mask = attention_mask(tokens)
        return batch if mask is None else {**batch, "attention_mask": mask}

    def describe(self) -> str:
        """A text such as `30 sequences of 5 to 128 tokens; rows longer than block_size=128: 2 of 30, cut`."""
        lengths = [len(row.input_ids) for row in self._rows]
        return f"{len(self):,} sequences of {min(lengths)} to {max(lengths)} tokens{self._remark}"


def about_long_rows(num_long: int, num_rows: int, limit: str, what_was_done: str) -> str:
    """The remark about rows that are too long; empty if none is."""
    return f"; rows longer than {limit}: {num_long} of {num_rows}, {what_was_done}" if num_long else ""


class Windows(Sequences):
    """Windows of equally many tokens of a stream, side by side. Abstract.

    Args:
        tokens: The stream, (N,).
        block_size: Tokens in a window.
        num_windows: How many windows to keep, spread evenly over the stream. None keeps all.
    """

    def __init__(self, tokens: Tensor, block_size: int, num_windows: int | None) -> None:
        self._tokens = tokens
        self._starts = window_starts(len(tokens), block_size, num_windows)
        self._offsets = torch.arange(block_size)

    def __len__(self) -> int:
        return len(self._starts)

    def _places(self, indices: Sequence[int]) -> Tensor:
        """Where the tokens of these B windows stand, (B, T)."""
        return self._starts[torch.as_tensor(indices)][:, None] + self._offsets

    def describe(self) -> str:
        """As `36 sequences of 128 tokens`."""
        return f"{len(self):,} sequences of {len(self._offsets)} tokens"


class TokenWindows(Windows):
    """Adjacent windows of a token stream, indexed by lists of window numbers.

    The stream is `<eos> document <eos> document <eos>`. An incomplete window at its end is left out.

    Args:
        documents: The texts.
        tokenizer: Encodes them.
        block_size: Tokens in a window.
        num_windows: How many windows to keep, spread evenly over the text. None keeps all.
    """

    def __init__(
        self,
        documents: Sequence[str],
        tokenizer: TextTokenizer,
        block_size: int,
        num_windows: int | None = None,
    ) -> None:
        super().__init__(torch.tensor(tokenizer.stream(documents)).long(), block_size, num_windows)
        self.num_tokens = len(self._tokens)
        self._bytes_per_token = torch.tensor(tokenizer.bytes_per_token())

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The batch of these B windows of T tokens: input_ids, targets and num_bytes of the targets."""
        places = self._places(indices)  # (B, T)
        targets = self._tokens[places + 1]  # (B, T)
        num_bytes = self._bytes_per_token[targets].sum(dim=1)  # (B,)
        return {"input_ids": self._tokens[places], "targets": targets, "num_bytes": num_bytes}
