"""LoRA from a config: puts PEFT layers into a network, which keeps its class."""

import copy
import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from lighter_freezers._extras import require
from lighter_freezers.arguments import checked, count, fraction, number, positive
from lighter_freezers.lora.config_patterns import resolve_patterns
from lighter_freezers.lora.initial_factors import moves_base
from lighter_freezers.lora.peft_configs import is_lora_config, peft_configs, refuse_other_tuners
from lighter_freezers.lora.peft_view import note_ranks
from lighter_freezers.lora.ranks import resize_lora_layer
from lighter_freezers.lora.restore import install_rank_restore
from lighter_freezers.lora.sites import PeftModule
from lighter_freezers.lora.target_groups import with_target_modules
from lighter_freezers.selection.names import closest_names, walk

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["apply_lora", "check_module_names"]

Network = TypeVar("Network", bound=nn.Module)


@checked
def apply_lora(
    network: Network, config: "Mapping[str, object] | LoraConfig", adapter_name: str = "default"
) -> Network:
    """Put LoRA layers of PEFT into a network, and freeze everything else in it.

    The network is changed in place and keeps its class and the names of its parts, so it works as before, in
    `GPTModule` or with `generate`. Checkpoints of it load with any ranks.

    | config | what gets LoRA |
    |---|---|
    | `{r: 8, target_modules: [c_attn]}` | every layer whose name ends in `c_attn`, rank 8, scaling 1 |
    | `{r: 8, lora_alpha: 16, target_modules: [c_attn, wte]}` | embeddings too; scaling 16 / 8 |
    | `{r: 8, target_modules: [c_attn], rank_pattern: {h.3.attn.c_attn: 0}}` | the same, none yet in block 3 |
    | `{r: 4, target_modules: all-linear, use_dora: true}` | every linear layer, with magnitudes |
    | `{r: 8, target: attention_only}` | queries and values, whatever the model calls them |

    Args:
        network: Any module: a GPT of this package, a model of transformers, your own.
        config: What `peft.LoraConfig` takes, as a mapping; or a `LoraConfig`. A 0 in `rank_pattern` is
            allowed here: the layer can get a rank later. Keys of `rank_pattern` and `alpha_pattern` are
            PEFT's, of which the first that matches counts, or short names (`attn.3`, `mlp.*`, `wte`). In a
            mapping `target` is the name of a group, `attention_only`, `mlp_only`, `both` or `all`, instead of
            `target_modules`.
        adapter_name: PEFT's name of the adapter.

    Returns:
        The network.

    Raises:
        TypeError: A number is a string, as YAML makes of `5e-5`.
        ValueError: PEFT does not know an option, a target or a key of a pattern matches no layer, targets are
            to be tied, another tuner is asked for or there, or an initialisation could not be taken back.

    Example:
        ```yaml
        network:
          _target_: lighter_freezers.apply_lora
          network:
            _target_: lighter_freezers.GPT
            config: {vocab_size: 1024, n_layer: 4}
          config: {r: 8, lora_alpha: 16, target_modules: [c_attn, wte]}
        ```
    """
    require("LoRA", "peft")
    from peft import inject_adapter_in_model

    refuse_other_tuners(network)
    _check_initialisation(network, config)
    for key in ("target_modules", "exclude_modules"):
        names = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
        check_module_names(f"config.{key}", names)
    if isinstance(config, Mapping):
        config = with_target_modules(network, config)
    peft_config = _peft_config(config)
    has_type = hasattr(getattr(network, "config", None), "model_type")  # PEFT may know its targets
    if not (peft_config.target_modules or peft_config.target_parameters or has_type):
        raise ValueError("config needs target_modules, the names of the layers that get LoRA.")
    _check_targets(network, peft_config)
    without_lora = resolve_patterns(network, peft_config)
    weights = _weights_to_keep(network, without_lora) if moves_base(peft_config.init_lora_weights) else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter
        warnings.filterwarnings("ignore", message=".*did not match any targeted module")  # parameters do
        inject_adapter_in_model(peft_config, network, adapter_name)
    install_rank_restore(network)
    for name in without_lora:
        layer: PeftModule = network.get_submodule(name)
        resize_lora_layer(layer, 0, adapter_name)
        if name in weights:
            layer.get_base_layer().weight.data = weights[name]  # as it was, to the last bit
    note_ranks(network)
    return network


def check_module_names(argument: str, value: object) -> None:
    """Refuse what is neither a regular expression nor a list of names, before PEFT fails on it.

    Raises:
        TypeError: It is neither.
        ValueError: It is a text, but no regular expression.
    """
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(
                f"{argument}: {value!r} is not a regular expression: {error}. Correct it, or give a list."
            ) from error
    elif value is not None and not (
        isinstance(value, (Sequence, Set)) and all(isinstance(name, str) for name in value)
    ):
        raise TypeError(f"{argument} must be a regular expression or a list of names. Got {value!r}.")


def _weights_to_keep(network: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    modules: dict[str, PeftModule] = {name: network.get_submodule(name) for name in names}
    return {name: module.weight.detach().clone() for name, module in modules.items()}


# Any: PEFT checks what YAML gives it
def _peft_config(config: "Mapping[str, Any] | LoraConfig") -> "LoraConfig":
    """A `LoraConfig` of our own."""
    from peft import LoraConfig, PeftConfig

    if isinstance(config, PeftConfig) and not is_lora_config(config):
        raise ValueError(
            f"config is a {type(config).__name__}, another tuner of PEFT: give a peft.LoraConfig. For that "
            "tuner call peft.get_peft_model; its adapters train, but their ranks cannot change here."
        )
    if isinstance(config, LoraConfig):
        _check_scaling(config.lora_alpha, config.alpha_pattern or {}, config.lora_dropout)
        return copy.deepcopy(config)
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping or a peft.LoraConfig. Got {type(config).__name__}.")
    defaults = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    for key, value in config.items():
        if key not in defaults:
            close = ", ".join(closest_names(str(key), defaults, 3))
            raise ValueError(f"config: peft.LoraConfig does not know '{key}'. Closest: {close}.")
        if type(defaults[key]) in (int, float):
            number(f"config.{key}", value)
    for key, value in (config.get("rank_pattern") or {}).items():
        count(f"config.rank_pattern['{key}']", value)
    given = {**defaults, **config}
    _check_scaling(given["lora_alpha"], config.get("alpha_pattern") or {}, given["lora_dropout"])
    if not count("config.r", config.get("r", defaults["r"])):
        raise ValueError(
            "config.r must be at least 1: it sets the scaling, lora_alpha / r. For layers that begin without "
            "LoRA write 0 in config.rank_pattern."
        )
    return LoraConfig(**config)


def _check_scaling(alpha: object, pattern: Mapping[str, object], dropout: object) -> None:
    """Refuse what PEFT takes but no update can be scaled or dropped by."""
    positive("config.lora_alpha", alpha)
    for key, value in pattern.items():
        positive(f"config.alpha_pattern['{key}']", value)
    if fraction("config.lora_dropout", dropout) == 1:
        raise ValueError("config.lora_dropout drops every input at 1, so nothing would train. Give less.")


def _check_targets(network: nn.Module, config: "LoraConfig") -> None:
    """Raise where a target is nowhere in the network, and where PEFT would tie factors."""
    if getattr(config, "ensure_weight_tying", False):
        raise ValueError(
            "ensure_weight_tying shares factors between embedding and head in a way that trains them twice "
            "as fast and merges them twice. Leave it out: LoRA on the embedding then adapts the input side."
        )
    if not isinstance(config.target_modules, (list, set, tuple)):  # a regular expression, or PEFT's defaults
        return
    paths = [path for path, _ in walk(network) if path]
    for target in config.target_modules:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            own_names = [path.rpartition(".")[2] for path in paths]
            close = ", ".join(f"'{name}'" for name in closest_names(target, own_names))
            raise ValueError(
                f"config.target_modules: no layer of {type(network).__name__} is called '{target}'. "
                f"Closest: {close or 'none'}. All: [name for name, _ in network.named_modules()]"
            )


def _check_initialisation(network: nn.Module, config: "Mapping[str, object] | LoraConfig") -> None:
    """Raise where an initialisation would change the base in a way that cannot be taken back."""
    options = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    init = options.get("init_lora_weights", True)
    if init == "loftq":
        raise ValueError(
            "init_lora_weights='loftq' replaces base weights by quantised ones, which rank 0 and "
            "save_adapter could not take back. Leave it out, or use PEFT alone."
        )
    if str(init).lower() == "olora" and options.get("fan_in_fan_out"):
        raise ValueError(
            "init_lora_weights='olora' does not transpose weights of (inputs, outputs), so PEFT would change "
            "what a Conv1D computes. Use 'pissa'."
        )
    others = peft_configs(network)
    moving = [name for name, other in others.items() if moves_base(other.init_lora_weights)]
    if others and (moves_base(init) or moving):
        raise ValueError(
            f"An initialisation that moves a part of the base weights into the factors ('{init}', or that of "
            f"{', '.join(moving) or 'this one'}) works with one adapter only: others would lack that part. "
            "Leave init_lora_weights out."
        )
