"""Rebuild the DDP wrapper after flags changed: its reducer only knows what was trainable when it was made."""

import gc
import inspect
from typing import Any

from torch.nn.parallel import DistributedDataParallel

__all__ = ["put_on", "rebuild", "refuse_unsupported_strategy", "take_off"]

_FOLLOW_FLAGS = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy", "FSDPStrategy")
_FOLLOW_SHAPES = ("SingleDeviceStrategy", "DDPStrategy")


def rebuild(strategy: Any) -> bool:
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


def take_off(strategy: Any) -> bool:
    """Leave the module without its DDP wrapper, whose reducer would else pin the shapes of its parameters.

    Args:
        strategy: The Trainer's strategy, of either Lightning namespace.

    Returns:
        Whether there was a DDP wrapper, so that `put_on` has to follow.
    """
    is_wrapped = _drop(strategy)
    if is_wrapped:
        strategy.model = strategy.lightning_module
        gc.collect()  # the reducer goes with the last cycle that refers to it
    return is_wrapped


def _drop(strategy: Any) -> bool:
    """Forget the wrapper: the old one and its buckets go before a new one comes."""
    if not isinstance(strategy.model, DistributedDataParallel):
        return False
    strategy.model._remove_autograd_hooks()  # type: ignore[no-untyped-call]
    strategy.model = None
    return True


def put_on(strategy: Any) -> None:
    """Wrap the module, as `rebuild` does."""
    options = strategy._ddp_kwargs
    can_skip_sync = "init_sync" in inspect.signature(DistributedDataParallel.__init__).parameters
    strategy._ddp_kwargs = {**options, "init_sync": False} if can_skip_sync else options
    try:
        strategy.model = strategy._setup_model(strategy.lightning_module)
    finally:
        strategy._ddp_kwargs = options
    strategy._register_ddp_hooks()
    strategy._pl_static_graph_delay_done = False


def refuse_unsupported_strategy(strategy: Any, is_static: bool, reshapes: bool = False) -> None:
    """Fail before training where a change of flags or shapes in the middle of a run could not be right.

    Args:
        strategy: The Trainer's strategy.
        is_static: What is held at the start stays held to the end, so any strategy will do.
        reshapes: Parameters may get other shapes.

    Raises:
        RuntimeError: The strategy cannot follow; the message names it and the way out.
    """
    name = type(strategy).__name__
    bases = {base.__name__ for base in type(strategy).__mro__}
    is_flat = "FSDPStrategy" in bases and not strategy.kwargs.get("use_orig_params")
    if is_flat:
        raise RuntimeError(
            f"{name}(use_orig_params=False) flattens parameters, so single layers cannot be frozen. "
            "Use FSDPStrategy(use_orig_params=True) or ModelParallelStrategy (FSDP2)."
        )
    follows = bases.intersection(_FOLLOW_FLAGS) and "DeepSpeedStrategy" not in bases
    if not follows and not is_static:
        raise RuntimeError(
            f"{name} cannot freeze or thaw layers while training runs: it fixes what trains when it starts. "
            "Hold the layers for the whole run (no from_*, until_*, windows), or use one of the strategies "
            "'auto', 'ddp', ModelParallelStrategy (FSDP2) or FSDPStrategy(use_orig_params=True)."
        )
    follows_shapes = bases.intersection(_FOLLOW_SHAPES) and "DeepSpeedStrategy" not in bases
    if reshapes and not follows_shapes:
        raise RuntimeError(
            f"{name} cannot change the rank of a layer while training runs: it lays parameters out when it "
            "starts. Use one device or the strategy 'ddp', or leave the ranks alone."
        )
