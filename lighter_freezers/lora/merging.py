"""Merges a LoRA update into the base weight, and refuses where that would be wrong."""

import torch
from torch import nn
from torch.nn import Parameter

from lighter_freezers.lora.initial_factors import forget_initial_factors
from lighter_freezers.lora.sites import LoraFactors, is_tied

__all__ = ["WAY_OUT", "check_merge", "merge_into_base"]

WAY_OUT = "on_zero='drop' or 'freeze'"  # of a refused merge, for who calls a function


@torch.no_grad()
def merge_into_base(factors: LoraFactors) -> None:
    """Add the update to the base weight, with PEFT's own arithmetic; the factors stay as they are."""
    layer, name = factors.layer, factors.adapter_name
    layer.merge(safe_merge=True, adapter_names=[name])
    layer.merged_adapters.remove(name)
    layer._caches.pop(f"{name}-weight_norm", None)  # what DoRA keeps for `unmerge`
    if not factors.is_embedding and layer.lora_B[name].bias is not None:
        layer.lora_B[name].bias.zero_()
    if name in layer.lora_magnitude_vector:  # a negative one has become part of the weight, with its sign
        layer.lora_magnitude_vector[name].weight.abs_()
    layer.base_is_changed = True  # for `save_adapter`
    forget_initial_factors(layer, name)  # the weight has all of it


def check_merge(factors: LoraFactors, model: nn.Module | None) -> None:
    """Raise if a merge would change more than this layer, or is impossible.

    Args:
        factors: Those to merge.
        model: The model around them.

    Raises:
        ValueError: No model was given, or the layer would not compute the same after a merge.
        RuntimeError: The base weight is quantised or tied, or another adapter is merged.
    """
    if model is None:
        raise ValueError("on_zero='merge' needs model=..., to see whether something else uses the weight.")
    layer = factors.layer
    kind, weight = type(layer.get_base_layer()).__name__, layer.get_base_layer().weight
    if type(weight) is not Parameter or not weight.is_floating_point():
        raise RuntimeError(
            f"Nothing can be merged into the weight of this {kind}: it is quantised "
            f"({type(weight).__name__}, {weight.dtype}). Use {WAY_OUT}."
        )
    if is_tied(model, weight):
        raise RuntimeError(
            f"The weight of this {kind} is tied to another layer, which a merge would change too. "
            f"Use {WAY_OUT}, or give that layer a weight of its own."
        )
    if reason := _why_no_merge(factors):
        raise ValueError(
            f"Merging LoRA into this {kind} would change what it computes: {reason}. Use {WAY_OUT}."
        )
    if layer.merged_adapters:
        merged = ", ".join(layer.merged_adapters)
        raise RuntimeError(f"Adapters of this {kind} are merged already ({merged}): call `unmerge` first.")


def _why_no_merge(factors: LoraFactors) -> str:
    """Why an update in the weight is not the update beside it; empty if it is."""
    layer, name = factors.layer, factors.adapter_name
    base = layer.get_base_layer()
    if getattr(base, "max_norm", None) is not None:
        return "max_norm rescales the rows of its weight"
    if getattr(base, "padding_mode", "zeros") != "zeros":
        return f"its weight sees an input with padding_mode='{base.padding_mode}', the factors one of zeros"
    if layer.lora_bias.get(name) and base.bias is None:
        return "the LoRA bias has no bias of the layer to go into"
    if layer.disable_adapters or name not in layer.active_adapters:
        return f"the adapter '{name}' is not active"
    if any(other != name for other in layer.lora_magnitude_vector):
        return "another adapter's DoRA measures the weight"
    if not all(parameter.isfinite().all() for parameter in factors.parameters):
        return "the factors are not finite"
    return ""
