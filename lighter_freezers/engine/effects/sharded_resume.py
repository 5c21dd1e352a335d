"""Resumes sharded optimizers, which load their state at once, by what trains at that moment.

Under FSDP2 torch prepares state for what requires gradients and reads that from the checkpoint: the state of
a layer that is frozen at the first step, and has trained since, would be lost without a word. Under FSDP1 it
matches state with parameters by their places in the groups, which have to be those of the checkpoint.
"""

import pickle
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from lighter_freezers.engine import ledger
from lighter_freezers.engine.checkpoint_identity import STATE_KEY
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.trainer_like import TrainerLike, optimizers_of
from lighter_freezers.engine.trainer_strategies import flat_model
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["ShardedResume"]

_HOLDER = "no optimizer state in the checkpoint"
_WAY_OUT = (
    "Resume with the Freezers and rates of the run that saved it, and let configure_optimizers take all "
    "parameters, not only those that train."
)


class ShardedResume:
    """Until the end of the set-up, lets what has state in a sharded checkpoint train while that is loaded.

    Args:
        trainer: The Trainer, which may load a checkpoint next.
        model: What trains.
        holds: Those of the first step.
        members: Names of the parameters in each group of each optimizer.
    """

    def __init__(
        self, trainer: TrainerLike, model: nn.Module, holds: Iterable[Hold], members: list[list[list[str]]]
    ) -> None:
        self._trainer, self._holds, self._members = trainer, holds, members
        self._parameters = canonical_parameters(model)
        is_flat = flat_model(trainer.strategy) is not None
        self._is_sharded = is_flat or any(hasattr(p, "full_tensor") for p in self._parameters.values())
        if self._is_sharded:  # Lightning has no hook between the optimizers and this call
            self.end()  # of a fit that failed
            self._load = getattr(trainer.strategy, "load_checkpoint")  # noqa: B009
            load = self._load_flat if is_flat else self._load_all
            vars(trainer.strategy)["load_checkpoint"] = load

    def end(self) -> None:
        """Nothing is loaded any more."""
        if self._is_sharded:
            vars(self._trainer.strategy).pop("load_checkpoint", None)

    def _load_flat(self, checkpoint_path: str | Path, **options: object) -> object:
        """In place of the method of FSDP1's strategy.

        Raises:
            RuntimeError: The groups are others than in the checkpoint.
        """
        path = Path(self._trainer.strategy.broadcast(checkpoint_path))
        is_safe = options.get("weights_only")  # None is what torch takes
        saved = _members_in(path, None if is_safe is None else bool(is_safe))
        if saved not in (None, self._members):
            raise RuntimeError(
                f"In the checkpoint the groups of the optimizers have other members. {_WAY_OUT}"
            )
        try:
            return self._load(checkpoint_path, **options)
        except ValueError as error:  # torch's, of a checkpoint that a run without callbacks of ours saved
            if "parameter group" not in str(error):
                raise
            raise RuntimeError(f"torch cannot load the optimizers: {error}. {_WAY_OUT}") from error

    def _load_all(self, checkpoint_path: str | Path, **options: object) -> object:
        """In place of the strategy's method.

        Raises:
            RuntimeError: The groups are others than in the checkpoint.
        """
        optimizers = optimizers_of(self._trainer)
        path = Path(self._trainer.strategy.broadcast(checkpoint_path))
        if path.is_dir():
            _refuse_other_groups(path, optimizers)
        held = {name: each for name, each in self._parameters.items() if ledger.is_held(each)}
        known = _names_with_state(path, list(self._parameters)) if held else set()
        without = [each for name, each in held.items() if name not in known]
        active = [hold for hold in self._holds if hold.is_active]
        ledger.hold(without, _HOLDER)
        for hold in active:
            hold.let_go()
        try:
            return self._load(checkpoint_path, **options)
        except ValueError as error:  # torch's, about groups without parameters
            if not any(_num_empty(optimizer) for optimizer in optimizers):
                raise
            raise RuntimeError(f"torch cannot load groups without parameters: {error} {_WAY_OUT}") from error
        finally:
            for hold in active:
                hold.take()
            ledger.release(without, _HOLDER)


def _keys(folder: Path) -> Iterable[str]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    return FileSystemReader(folder).read_metadata().state_dict_metadata


def _refuse_other_groups(folder: Path, optimizers: Sequence[Optimizer]) -> None:
    """A checkpoint in a folder is read group by group.

    Raises:
        RuntimeError: The optimizers of this run have other groups, or groups that torch cannot read.
    """
    saved = {".".join(key.split(".")[:3]) for key in _keys(folder) if ".param_groups." in key}
    for number, optimizer in enumerate(optimizers):
        there = sum(key.partition(".")[0] == f"optimizer_{number}" for key in saved)
        here, num_empty = len(optimizer.param_groups), _num_empty(optimizer)
        if there and (there != here or num_empty):
            raise RuntimeError(
                f"torch reads a sharded checkpoint group by group, and optimizer {number} "
                f"({type(optimizer).__name__}) has other groups: {there} there, {here} in this run, of which "
                f"{num_empty} are empty. {_WAY_OUT}"
            )


def _num_empty(optimizer: Optimizer) -> int:
    return sum(not group["params"] for group in optimizer.param_groups)


def _members_in(path: Path, weights_only: bool | None) -> object:
    """Names of the parameters in each group of each optimizer, where a callback of ours stored them."""
    file = path / "meta.pt" if path.is_dir() else path
    if not file.is_file():
        return None  # the strategy says that it is no checkpoint
    checkpoint = torch.load(file, map_location="cpu", mmap=True, weights_only=weights_only)
    saved = checkpoint.get("callbacks", {}).get(STATE_KEY, {})
    return saved.get("groups", {}).get("members")


def _names_with_state(path: Path, names: Sequence[str]) -> set[str]:
    if path.is_dir():
        return {key.partition(".state.")[2].rpartition(".")[0] for key in _keys(path) if ".state." in key}
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise RuntimeError(
            f"'{path}' has more than plain types, so it cannot be told which optimizer state it has. Save "
            "with ModelParallelStrategy(save_distributed_checkpoint=True)."
        ) from error
    keys = chain(*(state["state"] for state in checkpoint.get("optimizer_states", [])))
    return {names[key] if isinstance(key, int) else key for key in keys}
