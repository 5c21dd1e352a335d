"""Rows of a file as sequences of their own length, filled up in each batch to the longest of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lighter_freezers.experiments.data.batches import IGNORE_INDEX, attention_mask, padded
from lighter_freezers.experiments.data.sequences import Batch, Sequences, evenly_spread

__all__ = ["EncodedRow", "PaddedRows", "about_long_rows"]


@dataclass(frozen=True)
class EncodedRow:
    """One sequence.

    Args:
        input_ids: Its tokens, (T,).
        targets: A target for each token, (T,), or one for the row, ().
        num_bytes: The bytes of text that the targets stand for. None where nobody asks.
    """

    input_ids: Tensor
    targets: Tensor
    num_bytes: int | None = None


class PaddedRows(Sequences):
    """Sequences of different lengths, indexed by lists of their numbers.

    A batch has `attention_mask` (B, T), True for real tokens, only if one of its rows is shorter than
    another. Positions after the end of a row count nothing as targets.

    Args:
        rows: The sequences, at least one.
        remark: What was done to them, for the log line; empty if nothing was.
        limit: How many to keep, spread evenly over the file. None keeps all.
        pad_id: The token that stands after the end of a row; nobody looks at it.
    """

    def __init__(self, rows: Sequence[EncodedRow], remark: str, limit: int | None, pad_id: int) -> None:
        self._rows = [rows[index] for index in evenly_spread(len(rows), limit).tolist()]
        self._remark = remark
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The batch of these B rows, T tokens long as the longest: input_ids, targets and what they need."""
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
        """As `30 sequences of 5 to 128 tokens; rows longer than block_size=128: 2 of 30, cut`."""
        lengths = [len(row.input_ids) for row in self._rows]
        return f"{len(self):,} sequences of {min(lengths)} to {max(lengths)} tokens{self._remark}"


def about_long_rows(num_long: int, num_rows: int, limit: str, what_was_done: str) -> str:
    """The remark about rows that are too long; empty if none is."""
    return f"; rows longer than {limit}: {num_long} of {num_rows}, {what_was_done}" if num_long else ""
