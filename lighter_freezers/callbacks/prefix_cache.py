"""The callback that computes the output of a frozen prefix once for each row, and gives it back later."""

import os
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from lighter_freezers import arguments
from lighter_freezers._lightning import LightningModule
from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.engine import Engine, EngineCallback
from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of, callbacks_of_kind
from lighter_freezers.engine.transition import Transition
from lighter_freezers.prefix.cached_blocks import CachedBlocks, CacheOptions, Counts
from lighter_freezers.prefix.frozen_blocks import FrozenBlocks, frozen_blocks
from lighter_freezers.reports.columns import num_bytes
from lighter_freezers.reports.loggers import write_metrics

__all__ = ["PrefixCache"]


class PrefixCache(EngineCallback):
    """Compute the output of a frozen prefix of blocks once for each row, and read it in later epochs.

    While the first blocks of a model are frozen, the same row gives the same hidden states behind them, epoch
    after epoch. The cache stores these, in a memory-mapped file, and skips the blocks of every batch whose
    rows are all stored. The modules stay where they are, and the loss is the same. A row is recognised by
    what the first block gets for it: augmented, masked or mixed rows are other rows and run as usual.

    | call | what is stored |
    |---|---|
    | `PrefixCache()` | hidden states as they are, up to 20 GB a node, removed when the run ends |
    | `PrefixCache(dtype="bfloat16")` | float32 states rounded: half the size, losses equal to about 1e-3 |
    | `PrefixCache(folder="/scratch/rows", max_gb=500, keep=True)` | elsewhere, more, and for the next run |

    A store is dropped when the weights of the prefix change, and a new one is filled when other blocks are
    frozen. Training runs as without the cache, with one warning that says why, where stored rows would be
    wrong: dropout or stochastic depth in the prefix, a batch norm that normalises with its batch, trainable
    embeddings below, hooks that would not run, skip connections past the prefix, shared layers, FSDP.

    Logged keys, at the end of each training epoch, to all loggers:

    | key | what |
    |---|---|
    | `prefix_cache/hit_rate` | share of the batches, of training and evaluation, that got stored rows |
    | `prefix_cache/gigabytes` | size of the store of this node |

    `plan` says how large the store of each phase gets and what a step does without; `PhaseRecorder` measures
    the same.

    Runs on: setup, the transitions that the package's other callbacks make, on_train_epoch_start and _end,
    on_validation_start and _end, teardown. Between them it runs where the blocks are called.

    Saves: nothing. The store of an interrupted run stays on disk, and the resumed run continues with it.

    Args:
        folder: Of the store; one for all processes of a node, with room for `max_gb`. None means
            `prefix_cache` in the Trainer's `default_root_dir`.
        dtype: `float32` stores hidden states as they are; `bfloat16` rounds those that are float32.
        max_gb: The most gigabytes on one node.
        check_every_n_batches: After so many served batches the blocks run once more and the rows are
            compared; a difference turns the cache off, with a warning.
        keep: Keep the store when training ends.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.Freezer
              patterns: ["layers:embeddings", "layers:block.0-8"]
            - _target_: lighter_freezers.PrefixCache
        ```
    """

    @checked
    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        max_gb: float = 20.0,
        check_every_n_batches: int = 100,
        keep: bool = False,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.dtype = arguments.choice("dtype", dtype, ("float32", "bfloat16"))
        self.max_gb = arguments.positive("max_gb", max_gb)
        self.check_every_n_batches = arguments.at_least("check_every_n_batches", check_every_n_batches, 1)
        self.keep = keep
        self.cached: CachedBlocks | None = None
        self._frozen = FrozenBlocks()
        self._has_ended = False
        self._said: set[str] = set()  # why it is off, of which each reason is a warning once in a fit
        self._scratch: tempfile.TemporaryDirectory[str] | None = None  # for the rows of a rehearsal

    def setup(self, trainer: TrainerLike, pl_module: LightningModule, stage: str) -> None:
        """Register with the engine for the transitions of this fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._has_ended, self._said = False, set()
            Engine.of(trainer).add_listener(self)

    def on_transition(self, trainer: TrainerLike, pl_module: nn.Module, transition: Transition) -> None:
        """Cache the blocks that are frozen from now on; called by the engine on every rank."""
        self._follow(trainer, pl_module)

    def on_train_epoch_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Compare the content of the weights with that of the stored rows."""
        if self.cached is not None:
            self.cached.suspect()

    def on_validation_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Look whether averaged weights took the place of the trained ones."""
        if self.cached is not None:
            self.cached.suspect()

    def on_validation_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Look whether the trained weights are back."""
        if self.cached is not None:
            self.cached.suspect()

    def on_train_epoch_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Log the hit rate and the size."""
        cached = self.cached
        if cached is None or cached.why or not (cached.counts.num_run or cached.counts.num_served):
            return
        counts, cached.counts = cached.counts, Counts()
        if not trainer.is_global_zero:
            return
        now, share = trainer_clock.moment(trainer), counts.num_served / (counts.num_run + counts.num_served)
        log.info(
            "epoch %d: PrefixCache served %.0f %% of the batches from %d rows of %s, %s",
            now.epoch,
            100 * share,
            cached.num_rows,
            cached.title,
            num_bytes(cached.num_bytes),
        )
        values = {"prefix_cache/hit_rate": share, "prefix_cache/gigabytes": cached.num_bytes / 1e9}
        write_metrics(trainer.loggers, values, now.optimizer_step)

    def on_train_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """The run has come to its end, so nothing will continue with its store."""
        self._has_ended = True

    def teardown(self, trainer: TrainerLike, pl_module: nn.Module, stage: str) -> None:
        """Let the blocks run again."""
        self._close(deletes=self._has_ended and not self.keep)

    def on_exception(self, trainer: TrainerLike, pl_module: nn.Module, exception: BaseException) -> None:
        """Let the blocks run again, and leave the store to the run that resumes this one."""
        self._close(deletes=False)

    def _follow(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        frozen = frozen_blocks(pl_module, trainer.strategy)
        if frozen == self._frozen and self.cached is not None:
            self.cached.suspect()
            return
        self._close(deletes=not self.keep)
        self._frozen = frozen
        is_silent = not trainer.is_global_zero
        if frozen.why and frozen.why not in self._said and not is_silent:
            log.warning("PrefixCache is off: %s.", frozen.why)
            self._said.add(frozen.why)
        if frozen.blocks and not frozen.why:
            is_rehearsal = bool(callbacks_of_kind(callbacks_of(trainer), "Rehearsal"))
            if is_rehearsal:
                self._scratch = tempfile.TemporaryDirectory()
            options = CacheOptions(
                Path(self._scratch.name) if self._scratch else self._node_folder(trainer),
                getattr(torch, self.dtype),
                int(self.max_gb * 1e9),
                1 if is_rehearsal else self.check_every_n_batches,  # a plan measures blocks that run
            )
            self.cached = CachedBlocks(frozen, options, self._said, is_silent=is_silent)

    def _node_folder(self, trainer: TrainerLike) -> Path:
        folder = Path(trainer.default_root_dir, "prefix_cache") if self.folder is None else Path(self.folder)
        return folder / f"node{trainer.node_rank}" if trainer.num_nodes > 1 else folder

    def _close(self, *, deletes: bool) -> None:
        if self.cached is not None:
            self.cached.close(deletes=deletes)
        if self._scratch is not None:
            self._scratch.cleanup()
        self._scratch = None
        self.cached, self._frozen = None, FrozenBlocks()
