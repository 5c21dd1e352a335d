"""Saves an adapter for stock PEFT, whatever ranks its layers have."""

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import Parameter

from lighter_freezers._log import log
from lighter_freezers.engine import ledger
from lighter_freezers.lora.attach import network_of
from lighter_freezers.lora.ranks import alpha_for
from lighter_freezers.lora.sites import LoraFactors, PeftModule, find_lora_sites, lora_layers
from lighter_freezers.selection.name_summary import first_few
from lighter_freezers.selection.names import canonical_name, named_aliases, unwrapped, walk

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["save_adapter"]

_PREFIX = "base_model.model."  # of all names in PEFT's files


def save_adapter(
    model: nn.Module,
    path: str | Path,
    adapter_name: str = "default",
    *,
    base_is_saved: bool = False,
) -> None:
    """Save an adapter so that stock `PeftModel.from_pretrained(base, path)` gives the same outputs.

    They are the same bit for bit. The ranks of single layers go into PEFT's `rank_pattern`, `alpha_pattern`
    and `exclude_modules`. For factors of 16 bits load with `autocast_adapter_dtype=False`, or PEFT makes them
    float32. The base weights are not saved.

    Args:
        model: A network with LoRA layers of PEFT, a `PeftModel` or not, or a LightningModule around one.
        path: A folder, made if there is none, for `adapter_config.json` and `adapter_model.safetensors`.
        adapter_name: PEFT's name of the adapter.
        base_is_saved: Whether you have saved the base weights elsewhere: then the adapter is saved even if
            updates were merged into them, or they train.

    Raises:
        ValueError: The model has no such adapter.
        RuntimeError: Base weights have changed, so the adapter alone would not reproduce the model.

    Example:
        ```python
        import torch
        from peft import PeftModel
        from lighter_freezers import GPT, apply_lora, save_adapter

        base = GPT({"n_layer": 2, "n_embd": 32})
        state = {name: value.clone() for name, value in base.state_dict().items()}
        save_adapter(apply_lora(base, {"r": 4, "target_modules": ["c_attn"]}), "adapter")

        twin = GPT({"n_layer": 2, "n_embd": 32})
        twin.load_state_dict(state)
        loaded = PeftModel.from_pretrained(twin, "adapter")
        ```
    """
    network = unwrapped(network_of(model), at_root=True)
    configs = getattr(network, "peft_config", {})
    if adapter_name not in configs:
        there = ", ".join(map(repr, configs)) or "none"
        raise ValueError(
            f"{type(network).__name__} has no adapter '{adapter_name}' of PEFT. It has: {there}."
        )
    root = _base_model(network)
    if not base_is_saved:
        _refuse_changed_base(root, configs[adapter_name])
    sites = {name: site.factors for name, site in find_lora_sites(root, adapter_name).items()}
    ranks = _saved_ranks(sites)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(_weights(network, sites, ranks, adapter_name), folder)
    _config(configs[adapter_name], root, adapter_name, ranks).save_pretrained(str(folder))
    log.info("saved adapter '%s' of %d layers to %s", adapter_name, sum(map(bool, ranks.values())), folder)


def _base_model(network: PeftModule) -> nn.Module:
    """The module that PEFT's names are relative to."""
    from peft import PeftModel

    base: PeftModule = network.base_model.model if isinstance(network, PeftModel) else network
    assert isinstance(base, nn.Module)
    return base


def _refuse_changed_base(root: nn.Module, config: "LoraConfig") -> None:
    """Raise if the base weights are not those that the adapter will be loaded onto."""
    from peft.tuners.lora import LoraLayer

    inside = {id(p) for m in root.modules() if isinstance(m, LoraLayer) for p in _own_parameters(m)}
    changed = [
        name
        for name, parameter in named_aliases(root)
        if not ledger.is_user_frozen(parameter)
        and id(parameter) not in inside
        and ".modules_to_save." not in name
        and not (config.bias != "none" and name.endswith(".bias"))
    ]
    merged = [path for path, module in walk(root) if getattr(module, "base_is_changed", False)]
    for names, what in ((merged, "got a LoRA update merged into them"), (changed, "train or trained")):
        if names:
            raise RuntimeError(
                f"Base weights {what}: {first_few(names)}. The adapter alone is not this model. Save the "
                "base weights too, such as torch.save(model.state_dict(), ...), and call save_adapter(..., "
                "base_is_saved=True)."
            )


def _own_parameters(layer: PeftModule) -> list[Parameter]:
    """What a LoRA layer adds to its base layer."""
    below = {id(parameter) for parameter in layer.get_base_layer().parameters()}
    return [parameter for parameter in layer.parameters() if id(parameter) not in below]


def _saved_ranks(sites: Mapping[str, LoraFactors]) -> dict[str, int]:
    """Name -> rank on disk, 0 for what is left out; an effect at rank 0 needs a component of zeros."""
    ranks = {name: max(factors.rank, int(factors.has_more)) for name, factors in sites.items()}
    return ranks if any(ranks.values()) else dict.fromkeys(ranks, 1)  # PEFT wants at least one layer


def _config(
    config: "LoraConfig", root: nn.Module, adapter_name: str, ranks: Mapping[str, int]
) -> "LoraConfig":
    """The adapter's config with the ranks that there are; `r` and `lora_alpha` stay the defaults."""
    config = copy.deepcopy(config)
    config.inference_mode = True
    layers = lora_layers(root, adapter_name)
    # a pattern for each single layer, and no other: PEFT sorts them by name when it saves them
    config.rank_pattern, config.alpha_pattern = {}, {}
    for name, layer in layers.items():
        rank, alpha = ranks.get(name, layer.r[adapter_name]), layer.lora_alpha[adapter_name]
        if rank != layer.r[adapter_name]:
            alpha = alpha_for(layer.scaling[adapter_name], rank, layer.use_rslora.get(adapter_name, False))
        if rank and rank != config.r:
            config.rank_pattern[_key(name, layers)] = rank
        if rank and alpha != config.lora_alpha:
            config.alpha_pattern[_key(name, layers)] = alpha
    left_out = [name for name, rank in ranks.items() if not rank]
    if left_out:
        config.exclude_modules = _excluded(config.exclude_modules, left_out)
    return config


def _key(name: str, names: Iterable[str]) -> str:
    """A pattern for this layer only: PEFT matches the ends of names."""
    is_end_of_another = any(other.endswith(f".{name}") for other in names)
    return f"^{re.escape(name)}" if is_end_of_another else re.escape(name)


def _excluded(before: str | Iterable[str] | None, left_out: list[str]) -> str:
    """A regular expression for what was excluded before and what is now."""
    names = [re.escape(name) for name in left_out]
    if isinstance(before, str):
        return "|".join([f"(?:{before})", *names])
    return "|".join([*(rf"(?:.*\.)?{re.escape(name)}" for name in before or ()), *names])


def _weights(
    network: PeftModule, sites: Mapping[str, LoraFactors], ranks: Mapping[str, int], adapter_name: str
) -> dict[str, Tensor]:
    """What PEFT saves, under its names, without empty factors."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(
        network, network.state_dict(), adapter_name=adapter_name, save_embedding_layers=False
    )
    weights = {_PREFIX + canonical_name(key.removeprefix(_PREFIX)): value for key, value in state.items()}
    for name, factors in sites.items():
        A, B = factors.parameters
        kind = ("lora_embedding_A", "lora_embedding_B") if factors.is_embedding else ("lora_A", "lora_B")
        keys = [f"{_PREFIX}{name}.{side}{'' if factors.is_embedding else '.weight'}" for side in kind]
        if not ranks[name]:
            for key in keys:
                del weights[key]
        elif not factors.rank:
            weights[keys[0]] = A.new_zeros(1, *A.shape[1:])
            weights[keys[1]] = B.new_zeros(B.shape[0], 1, *B.shape[2:])
    return weights


def _write_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    owned = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    save_file(owned, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
