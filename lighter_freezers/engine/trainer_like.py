"""The parts of Lightning that this package relies on, in either namespace. A Trainer with them works."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

__all__ = [
    "LoggerLike",
    "OfLightning",
    "ParameterGroup",
    "SavedState",
    "SchedulerConfigLike",
    "SchedulerLike",
    "StrategyLike",
    "TrainerLike",
    "callbacks_of",
    "callbacks_of_kind",
    "optimizers_of",
    "stand_before",
]

ParameterGroup: TypeAlias = dict[str, Any]  # as torch types an optimizer's groups: each key has its own type
OfLightning: TypeAlias = Any  # a member that the base class declares, by the types of its own namespace
SavedState: TypeAlias = Mapping[str, Any]  # plain values; the writer of a key sets its type
_Object = TypeVar("_Object")


class SchedulerLike(Protocol):
    """An LR scheduler: one of torch, or one with the methods that Lightning requires."""

    @property
    def optimizer(self) -> Optimizer:
        """Whose learning rates it sets."""

    def state_dict(self) -> dict[str, object]:
        """As torch types it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # as in torch
        """As torch types it."""


class SchedulerConfigLike(Protocol):
    """An LR scheduler, and how often it steps."""

    frequency: int
    interval: str
    reduce_on_plateau: bool

    @property
    def scheduler(self) -> SchedulerLike:
        """The scheduler."""


class LoggerLike(Protocol):
    """A logger of either namespace, or the user's own."""

    @property
    def save_dir(self) -> str | None:
        """Where it writes; None for a logger without files."""

    @property
    def root_dir(self) -> str | None:
        """The folder of its runs."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write numbers."""


class StrategyLike(Protocol):
    """Where a Trainer computes, and how its processes agree."""

    optimizers: list[Optimizer]
    lr_scheduler_configs: list[OfLightning]

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning loads optimizers; else the strategy does, before callbacks see a checkpoint."""

    @property
    def root_device(self) -> torch.device:
        """The device of this process."""

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all or any of the processes decide so."""

    def reduce(self, tensor: Tensor, /, *, reduce_op: str) -> Tensor:
        """The same tensor on all processes."""

    def broadcast(self, obj: _Object, /) -> _Object:
        """What the first process passes, on all processes."""


class PrecisionLike(Protocol):
    """Clips gradients; it may scale the loss."""

    def clip_gradients(self, optimizer: Optimizer, /) -> None:
        """Clip as configured in the Trainer."""

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: float, /) -> None:
        """By the norm of all of them together."""

    def main_params(self, optimizer: Optimizer, /) -> Iterable[Parameter]:
        """What is clipped."""


class _ResultsLike(Protocol):
    def metrics(self, on_step: bool) -> Mapping[str, Mapping[str, Tensor]]: ...


class _EpochLoopLike(Protocol):
    max_steps: int
    min_steps: int | None
    _results: _ResultsLike  # private, but nothing public has the means of an epoch before it has ended


class _FitLoopLike(Protocol):
    max_epochs: int | None
    min_epochs: int | None
    max_batches: float

    @property
    def epoch_loop(self) -> _EpochLoopLike: ...
    @property
    def total_batch_idx(self) -> int: ...


class _Member(Protocol):
    @property
    def value(self) -> str: ...


class TrainerLike(Protocol):
    """A Trainer: of `pytorch_lightning`, of `lightning.pytorch`, or one that has the same parts.

    Its callbacks are read by `callbacks_of`, since Lightning declares no such attribute.
    """

    accumulate_grad_batches: int
    barebones: bool
    check_val_every_n_epoch: int | None
    gradient_clip_val: float | int | None
    limit_train_batches: int | float
    should_stop: bool
    val_check_batch: int | float | None

    @property
    def gradient_clip_algorithm(self) -> _Member | None:
        """An enumeration's member; None for the default."""

    @property
    def precision(self) -> object:
        """As the Trainer takes it."""

    @property
    def current_epoch(self) -> int:
        """Epochs begun, counted from 0."""

    @property
    def global_step(self) -> int:
        """Steps of all optimizers together."""

    @property
    def max_steps(self) -> int:
        """-1 for no limit."""

    @property
    def max_epochs(self) -> int | None:
        """-1 for no limit."""

    @property
    def num_training_batches(self) -> int | float:
        """In an epoch; infinite for a stream."""

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Steps of the whole run; infinite for a run without an end."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def num_nodes(self) -> int:
        """Number of machines."""

    @property
    def node_rank(self) -> int:
        """Number of this machine."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes files."""

    @property
    def is_last_batch(self) -> bool:
        """Whether the latest batch was the last one of its epoch."""

    @property
    def enable_validation(self) -> bool:
        """Whether validation runs in a fit."""

    @property
    def sanity_checking(self) -> bool:
        """Whether this validation comes before the first step."""

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The latest value of each logged metric."""

    @property
    def train_dataloader(self) -> object:
        """What the fit takes batches from."""

    @property
    def optimizers(self) -> list[Optimizer]:
        """In the order of `configure_optimizers`."""

    @property
    def lr_scheduler_configs(self) -> Sequence[SchedulerConfigLike]:
        """Of all optimizers."""

    @property
    def loggers(self) -> Sequence[LoggerLike]:
        """Empty with `logger=False`."""

    def save_checkpoint(self, filepath: str, weights_only: bool) -> None:
        """Write a checkpoint; a collective call."""

    @property
    def ckpt_path(self) -> str | PathLike[str] | None:
        """What it reads or has read a checkpoint from; None before it begins to."""

    @property
    def log_dir(self) -> str | None:
        """Where the first logger writes, the same on all ranks; a collective call."""

    @property
    def default_root_dir(self) -> str:
        """Where files go without a logger."""

    @property
    def strategy(self) -> StrategyLike:
        """Where and how it computes."""

    @property
    def precision_plugin(self) -> PrecisionLike:
        """What clips gradients."""

    @property
    def fit_loop(self) -> _FitLoopLike:
        """Where the limits of a run may be changed."""


# Any, for a list of one namespace's callbacks is no list of the other's.
def callbacks_of(trainer: TrainerLike) -> list[Any]:
    """The Trainer's own list."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined] # not declared there
    return callbacks


def optimizers_of(trainer: TrainerLike) -> list[Optimizer]:
    """The Trainer's optimizers; none where `configure_optimizers` returned None, for which it has a mock."""
    return [each for each in trainer.optimizers if type(each).__name__ != "_MockOptimizer"]


def callbacks_of_kind(callbacks: Iterable[object], *kinds: str) -> list[object]:
    """Callbacks of some classes and of those derived from them, in either namespace."""
    return [each for each in callbacks if {base.__name__ for base in type(each).__mro__} & {*kinds}]


def stand_before(trainer: TrainerLike, mover: object, kind: str) -> None:
    """Let a callback run before all of a kind. Call it in its own `setup`, which Lightning iterates over."""
    callbacks = callbacks_of(trainer)
    place = min(
        [callbacks.index(each) for each in callbacks_of_kind(callbacks, kind)], default=len(callbacks)
    )
    if place < callbacks.index(mover):
        callbacks.remove(mover)
        callbacks.insert(place, mover)
