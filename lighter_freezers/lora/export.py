"""Saves an adapter for stock PEFT, whatever ranks its layers have."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine import ledger
from lighter_freezers.lora.initial_factors import initial_factors, note_initial_factors
from lighter_freezers.lora.peft_configs import network_of, refuse_other_tuners, usual_adapter
from lighter_freezers.lora.peft_view import base_model, config_of_ranks, without_initialisation
from lighter_freezers.lora.sites import LoraFactors, PeftModule, find_lora_sites, lora_layers
from lighter_freezers.selection.name_summary import first_few
from lighter_freezers.selection.names import canonical_name, named_aliases, unwrapped, walk

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["save_adapter"]

_PREFIX = "base_model.model."  # of all names in PEFT's files
_SAVED_BY_PEFT = (".modules_to_save.", ".trainable_tokens_delta.")  # beside the factors


@checked
def save_adapter(
    model: nn.Module,
    path: str | Path,
    adapter_name: str | None = None,
    *,
    base_is_saved: bool = False,
) -> None:
    """Save an adapter so that stock `PeftModel.from_pretrained(base, path)` gives the same outputs.

    They are the same bit for bit. Where the initialisation took a part of the base weight (PiSSA, OLoRA,
    CorDA, LoRA-GA), a plain adapter for the original base is written, as PEFT converts it, and the outputs
    are the same but for rounding. The ranks of single layers go into PEFT's `rank_pattern`, `alpha_pattern`
    and `exclude_modules`. For factors of 16 bits load with `autocast_adapter_dtype=False`, or PEFT makes them
    float32. The base weights are not saved.

    Args:
        model: A network with LoRA layers of PEFT, a `PeftModel` or not, or a LightningModule around one.
        path: A folder, made if there is none, for `adapter_config.json` and `adapter_model.safetensors`.
        adapter_name: PEFT's name of the adapter. None for `default`, or for the only one there is.
        base_is_saved: You have saved the base weights elsewhere: save the adapter also where updates were
            merged into them, or where they train.

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
    refuse_other_tuners(model)
    adapter_name = adapter_name or usual_adapter(model)
    network = unwrapped(network_of(model), at_root=True)
    configs = getattr(network, "peft_config", {})
    if adapter_name not in configs:
        there = ", ".join(map(repr, configs)) or "none"
        raise ValueError(
            f"{type(network).__name__} has no adapter '{adapter_name}' of PEFT. It has: {there}."
        )
    root, config = base_model(network), configs[adapter_name]
    note_initial_factors(network)
    if not base_is_saved:
        _refuse_changed_base(root, config, adapter_name)
    sites = {name: site.factors for name, site in find_lora_sites(root, adapter_name).items()}
    lacking = {} if base_is_saved else _lacking(sites)
    ranks = _saved_ranks(sites, lacking, trains_biases=config.bias != "none")
    folder = _made(Path(path))
    _write_weights(_weights(network, sites, lacking, ranks, adapter_name), folder)
    config = without_initialisation(
        config_of_ranks(config, lora_layers(root, adapter_name), adapter_name, ranks)
    )
    config.inference_mode = True
    config.save_pretrained(str(folder))
    log.info("saved adapter '%s' of %d layers to %s", adapter_name, sum(map(bool, ranks.values())), folder)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"path: no folder can be made there ({error.strerror}). Give one that can be written"
        raise OSError(error.errno, said, str(folder)) from error
    return folder


def _refuse_changed_base(root: nn.Module, config: "LoraConfig", adapter_name: str) -> None:
    """Raise where the base weights are not those that the adapter will be put on again."""
    from peft.tuners.lora import LoraLayer

    inside = {id(p) for m in root.modules() if isinstance(m, LoraLayer) for p in _own_parameters(m)}
    changed = [
        name
        for name, parameter in named_aliases(root)
        if not ledger.is_user_frozen(parameter)
        and id(parameter) not in inside
        and not any(part in name for part in _SAVED_BY_PEFT)
        and not (config.bias != "none" and name.endswith(".bias"))
    ]
    merged = [path for path, module in walk(root) if getattr(module, "base_is_changed", False)]
    moved = [path for path, module in walk(root) if not _is_convertible(module, adapter_name)]
    for names, what in (
        (merged, "got a LoRA update merged into them"),
        (moved, "were changed by the initialisation of an adapter, which cannot be taken back"),
        (changed, "train or trained"),
    ):
        if names:
            raise RuntimeError(
                f"Base weights {what}: {first_few(names)}. The adapter alone is not this model. Save the "
                "base weights too, such as torch.save(model.state_dict(), ...), and call save_adapter(..., "
                "base_is_saved=True)."
            )


def _is_convertible(module: PeftModule, adapter_name: str) -> bool:
    """Whether the base weight lacks at most what this adapter took from it, and that is known."""
    unknown = getattr(module, "unknown_initials", ())
    return not unknown and set(getattr(module, "initial_factors", ())) <= {adapter_name}


def _own_parameters(layer: PeftModule) -> list[Parameter]:
    """What a LoRA layer adds to its base layer."""
    below = {id(parameter) for parameter in layer.get_base_layer().parameters()}
    return [parameter for parameter in layer.parameters() if id(parameter) not in below]


def _lacking(sites: Mapping[str, LoraFactors]) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> A0 and B0, where the base weight lacks these."""
    pairs = {name: initial_factors(factors.layer, factors.adapter_name) for name, factors in sites.items()}
    return {name: pair for name, pair in pairs.items() if pair is not None}


def _saved_ranks(
    sites: Mapping[str, LoraFactors], lacking: Mapping[str, tuple[Tensor, Tensor]], *, trains_biases: bool
) -> dict[str, int]:
    """Name -> rank on disk, 0 for what is left out; what acts at rank 0 gets a component of zeros."""
    ranks = {}
    for name, factors in sites.items():
        has_bias = trains_biases and getattr(factors.layer.get_base_layer(), "bias", None) is not None
        rank = factors.rank + (len(lacking[name][0]) if name in lacking else 0)
        ranks[name] = max(rank, int(factors.has_more or has_bias))
    return ranks if any(ranks.values()) else dict.fromkeys(ranks, 1)  # PEFT wants at least one layer


def _weights(
    network: PeftModule,
    sites: Mapping[str, LoraFactors],
    lacking: Mapping[str, tuple[Tensor, Tensor]],
    ranks: Mapping[str, int],
    adapter_name: str,
) -> dict[str, Tensor]:
    """What PEFT saves, under its names, without empty factors; B A - B0 A0 where the base lacks B0 A0."""
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
        elif name in lacking:
            weights[keys[0]] = torch.cat([A, lacking[name][0].to(A)])
            weights[keys[1]] = torch.cat([B, -lacking[name][1].to(B)], dim=1)
    return weights


def _write_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    owned = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    save_file(owned, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
