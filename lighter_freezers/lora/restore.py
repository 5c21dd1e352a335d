"""Loads checkpoints of models whose LoRA ranks have changed: shapes are set before values are loaded.

PyTorch Lightning loads weights before it gives callbacks their state, so the layers themselves take their
ranks out of the checkpoint.
"""

from collections.abc import MutableMapping

import torch
from torch import nn

from lighter_freezers.engine.effects.module_hooks import ModuleHook
from lighter_freezers.lora.initial_factors import (
    fill_initial_factors,
    note_initial_factors,
    save_initial_factors,
)
from lighter_freezers.lora.peft_configs import network_of, refuse_other_tuners
from lighter_freezers.lora.peft_view import note_ranks
from lighter_freezers.lora.rank_change import fit_rank
from lighter_freezers.lora.sites import LoraFactors, PeftModule, why_unsupported

__all__ = ["install_rank_restore"]

_MARK = "base_is_changed"


def install_rank_restore(model: nn.Module) -> None:
    """Let `load_state_dict` give each LoRA layer of PEFT the rank it has in the checkpoint.

    `apply_lora` and the callbacks do this by themselves. A model that PEFT adapted needs it for
    `load_from_checkpoint`, where no callback runs. Call it before the adapter trains: where PEFT's
    initialisation took a part of the base weight (PiSSA, OLoRA, CorDA, LoRA-GA), it notes that part.

    Args:
        model: A network, or a LightningModule around one. Calling it twice has no further effect.
    """
    from peft.tuners.lora import LoraLayer

    refuse_other_tuners(model)
    note_initial_factors(model)
    network = network_of(model)
    if not getattr(network, "restores_ranks", False):
        network.restores_ranks = True
        network.register_load_state_dict_post_hook(NOTE_LOADED)
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
    mark = state_dict.pop(prefix + _MARK, None)
    if f"{prefix}base_layer.weight" in state_dict:  # an adapter alone says nothing about the base
        layer.base_is_changed = bool(mark)
        fill_initial_factors(layer, state_dict, prefix)


def _note_loaded(network: nn.Module, _: object) -> None:
    """Let PEFT's configs know the ranks of a checkpoint."""
    note_ranks(network)


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
    """Mark in a checkpoint what was merged into the base weight, and what it lacks."""
    if getattr(layer, _MARK, False):
        state_dict[prefix + _MARK] = torch.tensor(True)
    save_initial_factors(layer, state_dict, prefix)


FIT_RANKS = ModuleHook(_fit_ranks, constant="FIT_RANKS")
SAVE_MARK = ModuleHook(_save_mark, constant="SAVE_MARK")
NOTE_LOADED = ModuleHook(_note_loaded, constant="NOTE_LOADED")
