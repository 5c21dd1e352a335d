"""Loads checkpoints of models whose LoRA ranks have changed: shapes are set before values are loaded.

PyTorch Lightning loads weights before it gives callbacks their state, so the layers themselves take their
ranks out of the checkpoint.
"""

from collections.abc import MutableMapping

import torch
from torch import nn

from lighter_freezers.engine.effects.module_hooks import ModuleHook
from lighter_freezers.lora.ranks import fit_rank
from lighter_freezers.lora.sites import LoraFactors, PeftModule, why_unsupported

__all__ = ["install_rank_restore"]

_MARK = "base_is_changed"


def install_rank_restore(model: nn.Module) -> None:
    """Let `load_state_dict` give each LoRA layer of PEFT the rank it has in the checkpoint.

    `apply_lora` and the callbacks do this by themselves. A model that PEFT adapted needs it for
    `load_from_checkpoint`, where no callback runs.

    Args:
        model: A network, or a LightningModule around one. Calling it twice has no further effect.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[PeftModule] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        if not isinstance(getattr(layer, "rank_restore", None), ModuleHook):  # a pickled layer may lack it
            layer.rank_restore = FIT_RANKS
            layer.register_load_state_dict_pre_hook(layer.rank_restore)
            layer.register_state_dict_post_hook(SAVE_MARK)


def _fit_ranks(
    layer: PeftModule, state_dict: MutableMapping[str, torch.Tensor], prefix: str, *_: object
) -> None:
    """Give every adapter of a layer the shapes that its factors have in a checkpoint."""
    for name in [*layer.lora_A, *layer.lora_embedding_A]:
        if why_unsupported(layer, name):
            continue
        rank = _rank_in(state_dict, prefix, name)
        factors = LoraFactors(layer, name)
        if rank is not None and rank != factors.rank:
            fit_rank(factors, rank)
    layer.base_is_changed = bool(state_dict.pop(prefix + _MARK, False))


def _rank_in(state_dict: MutableMapping[str, torch.Tensor], prefix: str, adapter_name: str) -> int | None:
    """The rank of an adapter in a checkpoint; None if it is not in there."""
    A = state_dict.get(f"{prefix}lora_embedding_A.{adapter_name}")
    if A is not None:
        return A.shape[0]
    A, B = (state_dict.get(f"{prefix}lora_{side}.{adapter_name}.weight") for side in "AB")
    if A is None or B is None:
        return None
    is_empty_convolution = A.ndim > 2 and not (A.any() or B.any())  # one component of zeros is rank 0 there
    return 0 if is_empty_convolution else A.shape[0]


def _save_mark(
    layer: PeftModule, state_dict: MutableMapping[str, torch.Tensor], prefix: str, *_: object
) -> None:
    """Mark in a checkpoint that an update was merged into the base weight."""
    if getattr(layer, _MARK, False):
        state_dict[prefix + _MARK] = torch.tensor(True)


FIT_RANKS = ModuleHook(_fit_ranks, constant="FIT_RANKS")
SAVE_MARK = ModuleHook(_save_mark, constant="SAVE_MARK")
