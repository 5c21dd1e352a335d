"""Adds LoRA to a layer without it: a PEFT adapter of rank 0, to be grown later."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lighter_freezers.engine import ledger
from lighter_freezers.lora.peft_configs import network_of, usual_adapter
from lighter_freezers.lora.ranks import resize_lora_layer
from lighter_freezers.lora.restore import install_rank_restore
from lighter_freezers.lora.sites import (
    LoraSite,
    PeftModule,
    find_lora_sites,
    refuse_unsupported,
    select_sites,
)
from lighter_freezers.selection.layer_names import components, expand_layers, parameters_of_layer
from lighter_freezers.selection.names import walk

__all__ = ["prepare_lora_layers", "single_layers", "targets_in"]

_HOLDER = "LoRA is put there"
# What makes queries, keys and values. Of an attention only these get LoRA, as in nanoGPT.
_ATTENTION_INPUTS = frozenset(
    [
        *("c_attn", "qkv", "qkv_proj", "query_key_value", "Wqkv", "in_proj"),
        *("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v"),
    ]
)


def prepare_lora_layers(model: nn.Module, layers: Iterable[str], adapter_name: str | None = None) -> None:
    """Put an adapter of rank 0 on each named layer that has none, so that optimizers can include it.

    What the model computes and what trains stays as it is. The scaling of such an adapter is 1.

    Args:
        model: A network, or a LightningModule around one.
        layers: Short names (`attn.3`, `mlp.*`, `wte`): in an attention the layers that make queries, keys and
            values, elsewhere every linear layer and embedding. Or keys of a rank pattern that match layers
            with LoRA.
        adapter_name: PEFT's name of the adapter. None for `default`, or for the only one there is.

    Raises:
        ValueError: There is no such layer, or nothing in it can have LoRA.
    """
    adapter_name = adapter_name or usual_adapter(model)
    for layer in [single for group in layers for single in single_layers(model, group)]:
        sites = find_lora_sites(model, adapter_name)
        if sites and _has_sites(model, sites, layer):
            continue
        for target in targets_in(model, layer, adapter_name):
            _attach(model, target, adapter_name)
    install_rank_restore(model)


def targets_in(model: nn.Module, layer: str, adapter_name: str) -> list[nn.Module]:
    """The modules of a layer that would get LoRA.

    Raises:
        ValueError: There is no such layer, or none of its modules can have LoRA.
    """
    chosen = set(map(id, parameters_of_layer(model, layer).values()))
    found = {path: module for path, module in _plain_modules(model).items() if id(module.weight) in chosen}
    if layer in ("wte", "lm_head"):  # tied, they have one weight
        found = {path: m for path, m in found.items() if isinstance(m, nn.Embedding) == (layer == "wte")}
    if not found:
        refuse_unsupported(model, chosen, adapter_name)
        raise ValueError(
            f"Nothing in '{layer}' can have LoRA: no nn.Linear, nn.Embedding or Conv1D of its own. "
            "See what there is: [name for name, _ in model.named_modules()]"
        )
    homes = {name: home for home, names in components(model).items() for name in names}
    parts: dict[str, list[str]] = {}
    for path in found:
        parts.setdefault(homes.get(f"{path}.weight", ""), []).append(path)
    return [found[path] for home, paths in parts.items() for path in _preferred(home, paths)]


def single_layers(model: nn.Module, layer: str) -> list[str]:
    """`attn.*` and `attn.0-3` written out; a key of a rank pattern as it is."""
    try:
        return expand_layers(model, layer)
    except ValueError:
        return [layer]


def _has_sites(model: nn.Module, sites: Mapping[str, LoraSite], layer: str) -> bool:
    try:
        return bool(select_sites(model, sites, layer))
    except ValueError:
        return False


def _preferred(home: str, paths: list[str]) -> list[str]:
    """Of an attention, what makes queries, keys and values, if there is such a thing; else all."""
    inputs = [path for path in paths if path.rpartition(".")[2] in _ATTENTION_INPUTS]
    return inputs if inputs and home.partition(".")[0] == "attn" else paths


def _plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Canonical path to module of all that PEFT knows how to adapt, and has not adapted yet."""
    from peft.tuners.lora import LoraLayer

    inside = {id(m) for layer in model.modules() if isinstance(layer, LoraLayer) for m in layer.modules()}
    return {path: m for path, m in walk(model) if id(m) not in inside and _can_have_lora(m)}


def _can_have_lora(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, nn.Embedding) or type(module).__name__ == "Conv1D"


def _attach(model: nn.Module, target: nn.Module, adapter_name: str) -> None:
    """Put PEFT's layer around a module wherever the model has it, with an adapter of rank 0."""
    from peft import LoraConfig, inject_adapter_in_model

    box = nn.Module()
    box.target = target
    is_transposed = type(target).__name__ == "Conv1D"
    config = LoraConfig(r=1, lora_alpha=1, target_modules=["target"], fan_in_fan_out=is_transposed)
    own = list(target.parameters(recurse=False))
    ledger.hold(own, _HOLDER)  # PEFT freezes them; this restores their flags
    with torch.random.fork_rng():
        inject_adapter_in_model(config, box, adapter_name)
    ledger.release(own, _HOLDER)
    layer: PeftModule = box.target
    layer.is_attached = True  # the base weight is held while the rank is above 0: see `hold_bases`
    resize_lora_layer(layer, 0, adapter_name)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is target and parent is not layer:
                setattr(parent, name, layer)
    _note_target(network_of(model), layer, adapter_name)


def _note_target(network: PeftModule, layer: PeftModule, adapter_name: str) -> None:
    """Add the layer to the network's PEFT config, so that the adapter can be saved."""
    from peft import LoraConfig

    name = next(path for path, module in walk(network) if module is layer)
    if not isinstance(getattr(network, "peft_config", None), dict):
        network.peft_config = {}
    config = network.peft_config.setdefault(adapter_name, LoraConfig(r=8, lora_alpha=8, target_modules=[]))
    if isinstance(config.target_modules, str):
        config.target_modules = f"(?:{config.target_modules})|(?:{re.escape(name)})"
    else:
        config.target_modules = {*(config.target_modules or ()), name}
