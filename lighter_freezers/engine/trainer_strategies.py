"""What the Trainer's strategies support: a run that needs more is rejected before it starts."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from lighter_freezers._log import log

__all__ = [
    "flat_model",
    "has_whole_modules",
    "refuse_fixed_shapes",
    "refuse_flat_gradients",
    "refuse_lean_groups",
    "refuse_sharded",
    "refuse_unsupported_strategy",
]

# By class name, because Lightning has two namespaces.
_FOLLOW_FLAGS = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy", "FSDPStrategy")
_FOLLOW_SHAPES = ("SingleDeviceStrategy", "DDPStrategy")  # and parameters that leave an optimizer group
_KEEP_SHAPES = ("LBFGS", "ZeroRedundancyOptimizer", "Lookahead")
_SHARD = ("ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy")
_KEEP_GRADIENTS_FLAT = ("FSDPStrategy", "DeepSpeedStrategy")


def refuse_unsupported_strategy(
    strategy: object, is_static: bool, reshapes: bool = False, *, allow_untested: bool = False
) -> None:
    """Refuse a strategy that does not support changing flags or shapes during a run.

    Args:
        strategy: The Trainer's strategy.
        is_static: Nothing changes during the run, so any strategy works.
        reshapes: Parameters may change shape.
        allow_untested: Warn of a strategy that is not known, instead of refusing it.

    Raises:
        RuntimeError: The strategy is not supported; the message names it and suggests an alternative.
    """
    name = type(strategy).__name__
    if _is_one_of(strategy, ("FSDPStrategy",)) and not getattr(strategy, "kwargs", {}).get("use_orig_params"):
        raise RuntimeError(
            f"{name}(use_orig_params=False) flattens parameters, so single layers cannot be frozen. "
            "Use FSDPStrategy(use_orig_params=True) or ModelParallelStrategy (FSDP2)."
        )
    is_deepspeed = _is_one_of(strategy, ("DeepSpeedStrategy",))  # a DDPStrategy that fixes what trains
    says_so = getattr(strategy, "follows_flag_changes", False) is True
    follows = says_so or (_is_one_of(strategy, _FOLLOW_FLAGS) and not is_deepspeed)
    if not (is_static or follows):
        if is_deepspeed or not allow_untested:
            raise RuntimeError(
                f"{name} cannot freeze or thaw layers while training runs: it fixes what trains when it "
                "starts. Hold the layers for the whole run (no from_*, until_*, windows), or use one of the "
                "strategies 'auto', 'ddp', ModelParallelStrategy (FSDP2) or "
                "FSDPStrategy(use_orig_params=True). A strategy of your own says that it follows by "
                "follows_flag_changes = True; to try one that does not, write allow_untested: true."
            )
        log.warning(
            "%s is not tested with layers that freeze or thaw while training runs. Check that what thaws "
            "moves, and that all processes have the same weights",
            name,
        )
    if reshapes and not has_whole_modules(strategy):
        raise RuntimeError(
            f"{name} cannot change the rank of a layer while training runs: it lays parameters out when it "
            "starts. Use one device or the strategy 'ddp', or leave the ranks alone."
        )


def refuse_lean_groups(strategy: object, optimizers: Iterable[Optimizer]) -> None:
    """Refuse a strategy or an optimizer from which parameters cannot be removed.

    Raises:
        RuntimeError: The strategy or an optimizer relies on a fixed set of parameters.
    """
    if not _is_one_of(strategy, _FOLLOW_SHAPES):
        raise RuntimeError(
            "optimizer_state='free' takes what is frozen out of the optimizer, and "
            f"{type(strategy).__name__} does not follow that when it saves a checkpoint. Use 'reset', one "
            "device or the strategy 'ddp'."
        )
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise RuntimeError(
            "optimizer_state='free' takes frozen parameters out of the optimizer, but LBFGS remembers all of "
            "them together. Use another optimizer, or optimizer_state='keep'."
        )


def refuse_fixed_shapes(optimizers: Iterable[Optimizer]) -> None:
    """Refuse an optimizer under which a parameter cannot change its shape.

    Raises:
        RuntimeError: It lays parameters out once, or keeps copies of them in their shape.
    """
    for optimizer in optimizers:
        if _is_one_of(optimizer, _KEEP_SHAPES):
            raise RuntimeError(
                f"{type(optimizer).__name__} lays parameters out once for all, so LoRA ranks cannot change "
                "under it. Use another optimizer, such as torch.optim.AdamW."
            )


def refuse_flat_gradients(strategy: object, callback: str) -> None:
    """Refuse a strategy whose gradients cannot be separated by layer.

    Raises:
        RuntimeError: The strategy keeps gradients in flat pieces.
    """
    if _is_one_of(strategy, _KEEP_GRADIENTS_FLAT):
        raise RuntimeError(
            f"{callback} cannot measure under {type(strategy).__name__}: it keeps gradients in flat "
            "pieces, not per layer. Use 'ddp' or ModelParallelStrategy (FSDP2), or remove it."
        )


def flat_model(strategy: object) -> nn.Module | None:
    """The model as FSDP1 has wrapped and flattened it; None under other strategies."""
    return getattr(strategy, "model", None) if _is_one_of(strategy, ("FSDPStrategy",)) else None


def has_whole_modules(strategy: object) -> bool:
    """Whether each process has every layer whole, so that one may skip what another runs."""
    return _is_one_of(strategy, _FOLLOW_SHAPES) and not _is_one_of(strategy, ("DeepSpeedStrategy",))


def refuse_sharded(strategy: object, needs: str, way_out: str = "") -> None:
    """Refuse a strategy under which no process has whole parameters.

    One that is not known gets here where it says that it follows flag changes, or its user allowed it.

    Args:
        strategy: The Trainer's strategy.
        needs: What needs them, as the beginning of the error.
        way_out: What else its user may do.

    Raises:
        RuntimeError: It shards them.
    """
    if _is_one_of(strategy, _SHARD):
        raise RuntimeError(
            f"{needs}, and {type(strategy).__name__} shards them. Use one device or the strategy 'ddp'"
            f"{way_out}."
        )


def _is_one_of(strategy: object, kinds: Iterable[str]) -> bool:
    return not {base.__name__ for base in type(strategy).__mro__}.isdisjoint(kinds)
