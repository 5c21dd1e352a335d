"""Layers whose adapters have no components: their forward calls the base layer, and nothing else."""

import types

import torch
from torch import nn

from lighter_freezers.lora.sites import LoraFactors, PeftModule, why_unsupported
from lighter_freezers.selection.names import each_module

__all__ = ["is_empty", "is_parallel", "shorten_forward", "shorten_forwards"]


def shorten_forwards(model: nn.Module) -> None:
    """Let every layer of PEFT call its base layer alone while no adapter of it has components.

    Where nothing in the model trains, the layers keep PEFT's forward, so that a loss still has a graph.
    """
    from peft.tuners.lora import LoraLayer

    trains = any(parameter.requires_grad and parameter.numel() for parameter in model.parameters())
    for layer in each_module(model):
        if "lora_A" in layer._modules and isinstance(layer, LoraLayer):
            shorten_forward(layer, allowed=trains)


def shorten_forward(layer: PeftModule, *, allowed: bool = True) -> None:
    """Give a layer the short forward if its adapters have no components, else PEFT's own.

    The layer stays what it is and where it is: keys of state dicts, hooks and PEFT's view are untouched.
    """
    is_short = isinstance(layer.__dict__.get("forward"), types.MethodType)
    if allowed and is_empty(layer):
        if "forward" not in layer.__dict__:  # accelerate puts one there too
            layer.forward = types.MethodType(_forward_of_base, layer)
    elif is_short and layer.__dict__["forward"].__func__ is _forward_of_base:
        del layer.forward


def is_empty(layer: PeftModule) -> bool:
    """Whether all adapters of a layer have rank 0 and nothing else that acts."""
    names = [*layer.lora_A, *layer.lora_embedding_A]
    return bool(names) and not any(
        why_unsupported(layer, name) or layer.r[name] or LoraFactors(layer, name).has_more for name in names
    )


def is_parallel() -> bool:
    """Whether several processes train: DDP then waits for a gradient of every parameter."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _forward_of_base(layer: PeftModule, *args: object, **kwargs: object) -> object:
    # DDP waits for gradients of empty parameters too; an adapter may have come since
    if is_parallel() or kwargs or layer.merged_adapters or any(layer.r.values()):
        return type(layer).forward(layer, *args, **kwargs)
    return layer.base_layer(*args)


_forward_of_base.__name__ = "forward"  # a pickled layer finds its class's own under this name
