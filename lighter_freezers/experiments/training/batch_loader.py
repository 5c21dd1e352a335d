"""Batches in an order that is the same for any number of processes, and that a checkpoint can resume."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from lighter_freezers.experiments.data.batches import Batch, Sequences

__all__ = ["Batches", "EpochOrder", "EvaluationLoader", "Share", "TrainingLoader"]


class Share(NamedTuple):
    """The position of this process: `rank` of `num_ranks`."""

    rank: int
    num_ranks: int


class EpochOrder:
    """The order of all sequences: random by seed and epoch, or unchanged.

    Args:
        num_sequences: The number of sequences.
        seed: Of the random order. None keeps the order.
    """

    def __init__(self, num_sequences: int, seed: int | None) -> None:
        self.num_sequences = num_sequences
        self.epoch = 0
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by Lightning."""
        self.epoch = epoch

    def of_epoch(self, epoch: int) -> list[int]:
        """The numbers of all sequences, in the order of the epoch."""
        if self._seed is None:
            return list(range(self.num_sequences))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        return [int(index) for index in torch.randperm(self.num_sequences, generator=generator)]


class Batches:
    """The share of one process in the global batches of an epoch.

    Rank r of n takes every n-th sequence from the r-th on. So n ranks together see the batches of one process
    with an n times larger batch size.

    Args:
        sampler: The order of all sequences; Lightning looks for `set_epoch` under this name.
        batch_size: Sequences in a batch of one process.
        share: Which process this is.
        drop_last: Leave out a last incomplete global batch. Otherwise only what cannot be divided equally is
            left out, fewer than n sequences, so that all ranks have the same number of batches.
    """

    def __init__(self, sampler: EpochOrder, batch_size: int, share: Share, drop_last: bool) -> None:
        self.sampler = sampler
        self._batch_size = batch_size
        self._share = share
        unit = share.num_ranks * (batch_size if drop_last else 1)
        self._num_used = sampler.num_sequences // unit * unit

    def __len__(self) -> int:
        return -(-self._num_used // (self._batch_size * self._share.num_ranks))

    def of_epoch(self, epoch: int) -> list[list[int]]:
        """The numbers of the sequences in each batch of this process."""
        order = self.sampler.of_epoch(epoch)
        mine = order[self._share.rank : self._num_used : self._share.num_ranks]
        return [mine[first : first + self._batch_size] for first in range(0, len(mine), self._batch_size)]


class EvaluationLoader:
    """Yields all batches in the order of the text, each time it is iterated.

    Args:
        sequences: The data set.
        batches: The numbers of the sequences in each batch.
        num_workers: Processes that make batches; 0 makes them here.
    """

    def __init__(self, sequences: Sequences, batches: Batches, num_workers: int = 0) -> None:
        self._sequences = sequences
        self._batches = batches
        self._num_workers = num_workers

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return _make(self._sequences, self._batches.of_epoch(0), self._num_workers)


class TrainingLoader:
    """Yields the batches of one epoch after another, and continues with the next batch after a resume.

    It is not a `DataLoader`, because Lightning would replace the sampler of one in a distributed run.

    It is one endless stream: an iteration continues where the previous one stopped. So with
    `limit_train_batches` all of the text is seen before any of it is repeated.

    State: the epoch, and how many of its batches were used. They are counted here, because a Trainer that was
    stopped by `max_steps` and is resumed counts differently: it treats the interrupted epoch as complete, and
    after a complete one without validation it requests one batch more.

    Args:
        sequences: The data set.
        batches: The numbers of the sequences in each batch; Lightning looks for the sampler in it.
        num_workers: Processes that make batches; 0 makes them here.
    """

    def __init__(self, sequences: Sequences, batches: Batches, num_workers: int = 0) -> None:
        self.batch_sampler = batches
        self._sequences = sequences
        self._num_workers = num_workers
        self._epoch: int | None = None  # not started: it starts with the epoch that Lightning sets
        self._num_given = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning makes iterators before it sets the epoch, and requests batches after.
        num_wanted = len(self)
        while num_wanted:
            epoch = self._begin_or_go_on()
            batches = self.batch_sampler.of_epoch(epoch)[self._num_given :][:num_wanted]
            num_wanted -= len(batches)
            for batch in _make(self._sequences, batches, self._num_workers):
                self._num_given += 1
                yield batch

    def state_dict(self) -> dict[str, int | None]:
        """The position of the stream."""
        return {"epoch": self._epoch, "num_given": self._num_given}

    def load_state_dict(self, state_dict: dict[str, int | None]) -> None:
        """Continue the stream from a saved position."""
        self._epoch, self._num_given = state_dict["epoch"], state_dict["num_given"] or 0

    def _begin_or_go_on(self) -> int:
        if self._epoch is None:
            self._epoch = self.batch_sampler.sampler.epoch
        if self._num_given == len(self):
            self._epoch, self._num_given = self._epoch + 1, 0
        return self._epoch


def _make(sequences: Sequences, batches: list[list[int]], num_workers: int) -> Iterator[Batch]:
    loader: DataLoader[Batch] = DataLoader(
        sequences,
        sampler=batches,
        batch_size=None,  # `sequences` makes a whole batch from a list of numbers
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # otherwise it would use the global generator, and change dropout
    )
    return iter(loader)


def _as_it_is(batch: object) -> object:
    """Return the batch unchanged, where torch's default would collate it."""
    return batch
