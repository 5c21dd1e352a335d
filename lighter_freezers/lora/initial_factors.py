"""What PEFT's initialisations took out of the base weights, so that it can be given back.

PiSSA, OLoRA, CorDA and LoRA-GA move a part s B0 A0 of a weight W into the factors: the base layer keeps
W - s B0 A0. What an adapter has learnt is then s (B A - B0 A0), and W is known as long as B0 and A0 are.
"""

from collections.abc import MutableMapping

import torch
from torch import Tensor, nn

from lighter_freezers.lora.peft_configs import peft_configs
from lighter_freezers.lora.sites import LoraFactors, PeftModule, is_tied, lora_layers

__all__ = [
    "fill_initial_factors",
    "forget_initial_factors",
    "give_back",
    "initial_factors",
    "moves_base",
    "note_initial_factors",
    "save_initial_factors",
]

_MOVING = ("pissa", "olora", "corda", "lora_ga")


def moves_base(init: object) -> bool:
    """Whether an `init_lora_weights` of PEFT moves a part of the base weight into the factors."""
    return str(init).lower().partition("_niter_")[0] in _MOVING


def initial_factors(layer: PeftModule, adapter_name: str) -> tuple[Tensor, Tensor] | None:
    """A0 (r, n) and B0 (m, r) that an adapter took out of the base weight; None if it took nothing."""
    pair: tuple[Tensor, Tensor] | None = _noted(layer).get(adapter_name)
    return pair


@torch.no_grad()
def note_initial_factors(model: nn.Module) -> None:
    """Note the initial factors of every adapter that has taken them out of the base, before it trains.

    Where an adapter has been trained or loaded already, they are lost: the layer is marked, and its rank
    cannot change. LoftQ replaces the weight by a quantised one, which no factors give back.

    Raises:
        ValueError: An adapter has taken a part out of a weight that another layer uses too.
    """
    for adapter_name, config in peft_configs(model).items():
        init = getattr(config, "init_lora_weights", True)
        if not moves_base(init) and init != "loftq":
            continue
        for name, layer in lora_layers(model, adapter_name).items():
            seen: frozenset[str] = getattr(layer, "noted_adapters", frozenset())
            if adapter_name not in layer.lora_A or adapter_name in seen:
                continue  # PEFT initialises embeddings as ever
            layer.noted_adapters = seen | {adapter_name}
            if not _takes_part(layer, adapter_name):
                continue
            layer.base_is_moved = True  # a checkpoint needs the base weight too
            is_quantised = not layer.get_base_layer().weight.is_floating_point()
            if init == "loftq" or is_quantised or not _is_fresh(layer, adapter_name):
                layer.unknown_initials = {*getattr(layer, "unknown_initials", ()), adapter_name}
                continue
            if is_tied(model, layer.get_base_layer().weight):
                raise ValueError(
                    f"init_lora_weights='{init}' takes a part of the weight of '{name}' into the adapter, "
                    "but another layer uses the weight too. Leave this layer out of target_modules."
                )
            A, B = LoraFactors(layer, adapter_name).parameters
            layer.initial_factors = {**_noted(layer), adapter_name: (A.detach().clone(), B.detach().clone())}


@torch.no_grad()
def give_back(factors: LoraFactors) -> None:
    """Make the base weight what it was before the adapter took a part of it."""
    pair = initial_factors(factors.layer, factors.adapter_name)
    if pair is None:
        return
    weight = factors.layer.get_base_layer().weight
    A, B = (factor.to(weight.device, torch.float32) for factor in pair)
    part = factors.scaling * (B @ A)
    weight.data = (weight.data.float() + (part.T if factors.layer.fan_in_fan_out else part)).to(weight.dtype)
    forget_initial_factors(factors.layer, factors.adapter_name)


def forget_initial_factors(layer: PeftModule, adapter_name: str) -> None:
    """The base weight of a layer lacks nothing any more."""
    if adapter_name in _noted(layer):
        layer.initial_factors = {name: pair for name, pair in _noted(layer).items() if name != adapter_name}


def save_initial_factors(layer: PeftModule, state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
    """Put them into a state dict."""
    for adapter_name, pair in _noted(layer).items():
        for side, factor in zip("AB", pair, strict=True):
            state_dict[f"{prefix}initial_{side}.{adapter_name}"] = factor


def fill_initial_factors(layer: PeftModule, state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
    """Take them out of a state dict that has the base weight too."""
    found = {}
    for adapter_name in [*layer.lora_A]:
        pair = [state_dict.pop(f"{prefix}initial_{side}.{adapter_name}", None) for side in "AB"]
        if pair[0] is not None:
            found[adapter_name] = (pair[0], pair[1])
    if found or _noted(layer):
        layer.initial_factors = found


def _noted(layer: PeftModule) -> dict[str, tuple[Tensor, Tensor]]:
    noted: dict[str, tuple[Tensor, Tensor]] = vars(layer).get("initial_factors", {})
    return noted


def _takes_part(layer: PeftModule, adapter_name: str) -> bool:
    """Whether the adapter of a layer is other than zero: LoRA-GA without gradients begins as any LoRA."""
    return all(bool(factor.any()) for factor in LoraFactors(layer, adapter_name).parameters)


def _is_fresh(layer: PeftModule, adapter_name: str) -> bool:
    """Whether B is as PEFT made it. All four begin with orthogonal columns, and the first step ends that."""
    B = LoraFactors(layer, adapter_name).parameters[1].detach().double()
    gram = B.T @ B
    sizes = gram.diagonal().clamp_min(0).sqrt()
    error = (gram - gram.diagonal().diag()).abs() / (sizes[:, None] * sizes).clamp_min(1e-30)
    rounding = torch.finfo(layer.get_base_layer().weight.dtype).eps / 4  # to the dtype of the base
    return float(error.max()) < max(rounding, 5e-6)
