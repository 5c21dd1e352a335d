"""PEFT's own view of an adapter whose layers have ranks of their own: `rank_pattern` and its neighbours."""

import copy
import re
from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from lighter_freezers.lora.initial_factors import moves_base
from lighter_freezers.lora.peft_configs import is_lora_config, network_of, peft_configs
from lighter_freezers.lora.rank_zero import shorten_forwards
from lighter_freezers.lora.resize import alpha_for
from lighter_freezers.lora.sites import PeftModule, lora_layers, why_unsupported
from lighter_freezers.selection.names import unwrapped

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["base_model", "config_of_ranks", "note_ranks", "pattern_name", "without_initialisation"]


_GIVEN = "exclude_modules_given"


def note_ranks(model: nn.Module) -> None:
    """Let PEFT's configs say which ranks there are, so that what PEFT does with adapters is right.

    A layer of rank 0 is one of `exclude_modules`, as PEFT knows no rank 0; its forward gets short.
    """
    shorten_forwards(model)
    network: PeftModule = unwrapped(network_of(model), at_root=True)
    for adapter_name, config in peft_configs(network).items():
        if not is_lora_config(config):
            continue
        layers = lora_layers(base_model(network), adapter_name)
        ranks = {
            n: layer.r[adapter_name]
            for n, layer in layers.items()
            if not why_unsupported(layer, adapter_name)
        }
        if any(ranks.values()):  # PEFT wants at least one layer
            network.peft_config[adapter_name] = config_of_ranks(config, layers, adapter_name, ranks)


def base_model(network: PeftModule) -> nn.Module:
    """The module that PEFT's names are relative to."""
    from peft import PeftModel

    base: PeftModule = network.base_model.model if isinstance(network, PeftModel) else network
    assert isinstance(base, nn.Module)
    return base


def config_of_ranks(
    config: "LoraConfig", layers: Mapping[str, PeftModule], adapter_name: str, ranks: Mapping[str, int]
) -> "LoraConfig":
    """An adapter's config with the ranks that there are; `r` and `lora_alpha` stay the defaults.

    Args:
        config: The adapter's `LoraConfig`; it is left as it is.
        layers: PEFT's name -> layer with this adapter, of all that there are.
        adapter_name: PEFT's name of the adapter.
        ranks: Name of a layer -> its rank; 0 for what has no adapter. Others keep what they have.
    """
    config = copy.deepcopy(config)
    ranked = {
        pattern_name(name, layer): (ranks.get(name, layer.r[adapter_name]), layer)
        for name, layer in layers.items()
    }
    ends = {end for name in ranked for end in _ends(name)}
    # a pattern for each single layer, and no other: PEFT sorts them by name when it saves them
    config.rank_pattern, config.alpha_pattern = {}, {}
    for name, (rank, layer) in ranked.items():
        alpha = layer.lora_alpha[adapter_name]
        if rank != layer.r[adapter_name]:
            alpha = alpha_for(layer.scaling[adapter_name], rank, layer.use_rslora.get(adapter_name, False))
        if rank and rank != config.r:
            config.rank_pattern[_key(name, ends)] = rank
        if rank and alpha != config.lora_alpha:
            config.alpha_pattern[_key(name, ends)] = alpha
    left_out = [name for name, rank in ranks.items() if not rank]
    given = getattr(config, _GIVEN, config.exclude_modules)  # by the user, before ranks of 0 came to it
    setattr(config, _GIVEN, given)
    config.exclude_modules = _excluded(given, left_out) if left_out else given
    return config


def without_initialisation(config: "LoraConfig") -> "LoraConfig":
    """The config for factors that are loaded: no initialisation that changes the base, or minds the rank."""
    if moves_base(config.init_lora_weights) or config.init_lora_weights in ("eva", "loftq", "orthogonal"):
        config.init_lora_weights = True
        config.eva_config = config.corda_config = config.lora_ga_config = None
        config.loftq_config = {}
    return config


def pattern_name(path: str, layer: PeftModule) -> str:
    """What the keys of PEFT's patterns are matched with: for the parameter of experts, its own name."""
    if type(layer).__name__ != "ParamWrapper":
        return path
    owner = [segment for segment in path.split(".") if segment != "base_layer"]  # they are nested
    return ".".join([*owner, layer.parameter_name])


def _ends(name: str) -> list[str]:
    """What other names could be the end of this one."""
    segments = name.split(".")
    return [".".join(segments[first:]) for first in range(1, len(segments))]


def _key(name: str, ends: Container[str]) -> str:
    """A pattern for this layer only: PEFT matches the ends of names."""
    return f"^{re.escape(name)}" if name in ends else re.escape(name)


def _excluded(before: str | Iterable[str] | None, left_out: list[str]) -> str:
    """A regular expression for what was excluded before and what is now."""
    names = [re.escape(name) for name in left_out]
    if isinstance(before, str):
        return "|".join([f"(?:{before})", *names])
    return "|".join([*(rf"(?:.*\.)?{re.escape(name)}" for name in before or ()), *names])
