"""The adapters that PEFT has put on a model, by their configs: which there are, and of which tuner."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from lighter_freezers._extras import require

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "PeftModule",
    "is_lora_config",
    "network_of",
    "peft_configs",
    "refuse_other_tuners",
    "usual_adapter",
]


# Modules and configs of PEFT: it sets attributes that no class of all of them declares.
PeftModule: TypeAlias = Any


def network_of(model: nn.Module) -> PeftModule:
    """What PEFT's config belongs to: the module that has one, else the network in a LightningModule."""
    for module in model.modules():
        if isinstance(getattr(module, "peft_config", None), dict):
            return module
    if not hasattr(model, "configure_optimizers"):
        return model
    return next((getattr(model, name) for name in ("network", "model") if hasattr(model, name)), model)


def peft_configs(model: nn.Module) -> dict[str, PeftModule]:
    """PEFT's configs of a model by adapter, wherever in it they are."""
    every = (getattr(module, "peft_config", None) for module in model.modules())
    return next((configs for configs in every if isinstance(configs, dict)), {})


def usual_adapter(model: nn.Module) -> str:
    """The adapter that is meant where no name is given: `default`, else the only one, else the active one."""
    require("LoRA", "peft")
    from peft.tuners.lora import LoraLayer

    layers: Iterator[PeftModule] = (module for module in model.modules() if isinstance(module, LoraLayer))
    active = {name: name in layer.active_adapters for layer in layers for name in layer.r}
    if "default" in active or not active:
        return "default"
    return str(max(active, key=lambda name: active[name]))


def refuse_other_tuners(model: nn.Module) -> None:
    """Raise where a model has adapters of PEFT that are no LoRA, or factors that two layers share.

    Raises:
        ValueError: It has; the message names them.
    """
    require("LoRA", "peft")
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    configs = peft_configs(model)
    kinds = {f"{type(c).__name__} '{name}'" for name, c in configs.items() if not is_lora_config(c)}
    for module in model.modules():
        is_lora = isinstance(module, LoraLayer) and not isinstance(module, AdaLoraLayer)
        if not configs and isinstance(module, BaseTunerLayer) and not is_lora:
            kinds = {f"layers of {type(module).__module__.split('.')[2]}"}
    if kinds:
        raise ValueError(
            f"{type(model).__name__} has adapters of PEFT that are no LoRA ({', '.join(sorted(kinds))}): "
            "their ranks cannot change, and PEFT's own save_pretrained saves them. Use peft.LoraConfig."
        )
    if any(getattr(config, "ensure_weight_tying", False) for config in configs.values()):
        _refuse_shared_factors(model)


def _refuse_shared_factors(model: nn.Module) -> None:
    """Raise where `ensure_weight_tying` gave a head the memory of an embedding's factors (PEFT's #2864)."""
    from peft.tuners.lora import LoraLayer

    owners: dict[int, nn.Module] = {}
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        factors: list[PeftModule] = [getattr(layer, name) for name in layer.adapter_layer_names[:4]]
        pointers = {parameter.data_ptr() for module in factors for parameter in module.parameters()}
        if any(owners.setdefault(pointer, layer) is not layer for pointer in pointers - {0}):
            raise ValueError(
                "ensure_weight_tying has given two layers of this model the same factors, which PEFT trains "
                "twice as fast and merges twice. Leave it out: LoRA on the embedding then adapts the input."
            )


def is_lora_config(config: "PeftConfig") -> bool:
    """Whether a config of PEFT is one of LoRA; AdaLoRA's derives from it, but is another tuner."""
    return str(getattr(config.peft_type, "value", config.peft_type)) == "LORA"
