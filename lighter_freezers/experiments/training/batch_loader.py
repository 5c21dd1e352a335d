"""Batches in an order that is the same for one process and for several, and that a checkpoint can take up."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from lighter_freezers.experiments.data.sequences import Batch, Sequences

__all__ = ["Batches", "EpochOrder", "EvaluationLoader", "Share", "TrainingLoader"]


class Share(NamedTuple):
    """Which of several processes this is: `rank` of `num_ranks`."""

    rank: int
    num_ranks: int


class EpochOrder:
    """All sequences in an order drawn from a seed and the epoch, or as they come.

    Args:
        num_sequences: How many there are.
        seed: Draws the orders. None leaves them as they come.
    """

    def __init__(self, num_sequences: int, seed: int | None) -> None:
        self.num_sequences = num_sequences
        self.epoch = 0
        self._seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Lightning tells which epoch begins."""
        self.epoch = epoch

    def of_epoch(self, epoch: int) -> list[int]:
        """The numbers of all sequences."""
        if self._seed is None:
            return list(range(self.num_sequences))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        return [int(index) for index in torch.randperm(self.num_sequences, generator=generator)]


class Batches:
    """The share that one process has in the global batches of an epoch.

    Of the order of all sequences rank r of n takes every n-th from the r-th on. So n ranks together see the
    batches of one process with an n times larger batch.

    Args:
        sampler: The order of all sequences; Lightning looks for `set_epoch` under this name.
        batch_size: Sequences in a batch of one process.
        share: Which process this is.
        drop_last: Leave out a last incomplete global batch. Otherwise only what cannot be shared equally is
            left out, fewer than n sequences, so that the ranks stay in step.
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
    """Gives all batches in the order of the text, each time it is iterated.

    Args:
        sequences: What the batches are made of.
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
    """Gives the batches of one epoch after another, and goes on with the next batch after a resume.

    It is no `DataLoader` for Lightning, which in a distributed run would replace the order of one.

    It is one endless stream: an iteration takes up where the one before was left. So under
    `limit_train_batches` all of the text is seen before any of it comes again.

    State: the epoch, and how many of its batches were given. They are counted here, because a Trainer that
    was stopped by `max_steps` and is resumed counts otherwise: it takes the epoch that it broke off for a
    whole one, and after a whole one without validation it asks for one batch more.

    Args:
        sequences: What the batches are made of.
        batches: The numbers of the sequences in each batch; Lightning looks for the sampler in it.
        num_workers: Processes that make batches; 0 makes them here.
    """

    def __init__(self, sequences: Sequences, batches: Batches, num_workers: int = 0) -> None:
        self.batch_sampler = batches
        self._sequences = sequences
        self._num_workers = num_workers
        self._epoch: int | None = None  # not begun: begins with the epoch that Lightning tells
        self._num_given = 0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning makes iterators before it tells the epoch, and asks for batches after.
        num_wanted = len(self)
        while num_wanted:
            epoch = self._begin_or_go_on()
            batches = self.batch_sampler.of_epoch(epoch)[self._num_given :][:num_wanted]
            num_wanted -= len(batches)
            for batch in _make(self._sequences, batches, self._num_workers):
                self._num_given += 1
                yield batch

    def state_dict(self) -> dict[str, int | None]:
        """Where the stream stands."""
        return {"epoch": self._epoch, "num_given": self._num_given}

    def load_state_dict(self, state_dict: dict[str, int | None]) -> None:
        """Let the stream go on from there."""
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
        generator=torch.Generator(),  # or it would draw from the global one, and dropout would notice
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    """Not what torch does by itself: make lists of tuples."""
    return batch
