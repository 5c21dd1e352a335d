"""Rebuild the DDP wrapper after flags changed: its reducer covers what was trainable when built."""

import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

__all__ = ["put_on", "rebuild", "take_off"]

_DDPStrategy: TypeAlias = Any  # of either namespace; its private parts are used here and nowhere else
_Hooks: TypeAlias = list[tuple[Callable[..., object], object]]  # of communication, each with its state
_hooks: weakref.WeakKeyDictionary[_DDPStrategy, _Hooks] = weakref.WeakKeyDictionary()  # without a wrapper now


def rebuild(strategy: _DDPStrategy) -> bool:
    """Wrap the module again, on all ranks at the same step boundary.

    The weights are not broadcast again: they are equal on all ranks, so rebuilding costs milliseconds.

    Args:
        strategy: The Trainer's strategy, of either Lightning namespace.

    Returns:
        Whether there was a DDP wrapper.
    """
    is_wrapped = _drop(strategy)
    if is_wrapped:
        put_on(strategy)
    return is_wrapped


def take_off(strategy: _DDPStrategy) -> bool:
    """Remove the DDP wrapper, whose reducer would otherwise fix the shapes of the parameters.

    Args:
        strategy: The Trainer's strategy, of either Lightning namespace.

    Returns:
        Whether there was a DDP wrapper, so that `put_on` has to follow.
    """
    is_wrapped = _drop(strategy)
    if is_wrapped:
        strategy.model = strategy.lightning_module
        gc.collect()  # the reducer is freed with the last reference cycle that contains it
    return is_wrapped


def _drop(strategy: _DDPStrategy) -> bool:
    """Delete the wrapper: the old one and its buckets are freed before a new one is built."""
    if not isinstance(strategy.model, DistributedDataParallel):
        return False
    _hooks[strategy] = strategy.model._comm_hooks
    strategy.model._remove_autograd_hooks()  # type: ignore[no-untyped-call]
    strategy.model = None
    return True


def put_on(strategy: _DDPStrategy) -> None:
    """Wrap the module, as `rebuild` does."""
    options = strategy._ddp_kwargs
    can_skip_sync = "init_sync" in inspect.signature(DistributedDataParallel.__init__).parameters
    strategy._ddp_kwargs = {**options, "init_sync": False} if can_skip_sync else options
    try:
        strategy.model = strategy._setup_model(strategy.lightning_module)
    finally:
        strategy._ddp_kwargs = options
    strategy._register_ddp_hooks()
    for hook, state in _hooks.pop(strategy, []):
        _forget_buckets(state)
        if not strategy.model._comm_hooks:  # the user's own, which the strategy does not know
            strategy.model.register_comm_hook(state, hook)
    strategy._pl_static_graph_delay_done = False


def _forget_buckets(state: object) -> None:
    """Empty what the state of a communication hook keeps for each bucket: new ones hold other gradients.

    PowerSGD keeps errors and factors by the number of the bucket, and counts from 0 again: in the first steps
    of a wrapper DDP may still form other buckets. A state without such records goes on as it is, and so does
    what a state knows by other numbers, such as a ratio for each step.
    """
    slots = [name for each in type(state).__mro__ for name in getattr(each, "__slots__", ())]
    values = [getattr(state, name, None) for name in (*slots, *getattr(state, "__dict__", ()))]
    records = [
        each
        for each in values
        if isinstance(each, dict)
        and all(isinstance(key, int) and isinstance(value, Tensor) for key, value in each.items())
    ]
    for record in records:
        record.clear()
    if records and hasattr(state, "iter"):
        state.iter = 0
