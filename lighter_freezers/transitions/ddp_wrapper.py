"""Rebuild the DDP wrapper after flags changed: its reducer only knows what was trainable when it was made."""

import inspect
from typing import Any

from torch.nn.parallel import DistributedDataParallel

__all__ = ["rebuild", "refuse_unsupported_strategy"]

_FOLLOW_FLAGS = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy", "FSDPStrategy")


def rebuild(strategy: Any) -> bool:
    """Wrap the module again, on all ranks at the same step boundary.

    The weights are not broadcast again: they are equal on all ranks, so rebuilding costs milliseconds.

    Args:
        strategy: The Trainer's strategy, of either Lightning namespace.

    Returns:
        Whether there was a DDP wrapper.
    """
    old = strategy.model
    if not isinstance(old, DistributedDataParallel):
        return False
    old._remove_autograd_hooks()  # type: ignore[no-untyped-call]
    strategy.model = None
    del old  # the old wrapper and its buckets go before the new ones come
    options = strategy._ddp_kwargs
    can_skip_sync = "init_sync" in inspect.signature(DistributedDataParallel.__init__).parameters
    strategy._ddp_kwargs = {**options, "init_sync": False} if can_skip_sync else options
    try:
        strategy.model = strategy._setup_model(strategy.lightning_module)
    finally:
        strategy._ddp_kwargs = options
    strategy._register_ddp_hooks()
    strategy._pl_static_graph_delay_done = False
    return True


def refuse_unsupported_strategy(strategy: Any, is_static: bool) -> None:
    """Fail before training where a change of flags in the middle of a run could not be right.

    Args:
        strategy: The Trainer's strategy.
        is_static: What is held at the start stays held to the end, so any strategy will do.

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
