"""The patterns of a LoRA config before PEFT sees them: short names, zeros, unknown keys."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lighter_freezers.lora.sites import matches_pattern
from lighter_freezers.selection.layer_names import parameters_of_layer
from lighter_freezers.selection.names import closest_names

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["resolve_patterns"]


def resolve_patterns(network: nn.Module, config: "LoraConfig") -> list[str]:
    """Write short names out, as PEFT's own keys; of several keys that match a layer the first one counts.

    A key that PEFT would match with a layer keeps PEFT's meaning. Only others are short names.

    Args:
        network: What the config is for, before PEFT has changed it.
        config: A `LoraConfig`; its patterns are replaced. Where a rank is 0, the default takes its place.

    Returns:
        The names of the layers whose rank is to be 0.

    Raises:
        ValueError: A key matches no layer that gets LoRA, or the parameter of experts is to have rank 0.
    """
    targets = _targets(network, config)
    ranks = _by_layer("rank_pattern", network, targets, config.rank_pattern or {})
    alphas = _by_layer("alpha_pattern", network, targets, config.alpha_pattern or {})
    config.rank_pattern = {f"^{re.escape(name)}": rank or config.r for name, rank in ranks.items()}
    config.alpha_pattern = {f"^{re.escape(name)}": alpha for name, alpha in alphas.items()}
    zeros = [name for name, rank in ranks.items() if rank == 0]
    for name in zeros:
        if isinstance(targets[name], nn.Parameter):
            raise ValueError(
                f"config.rank_pattern: '{name}' is a parameter, which PEFT cannot leave without components. "
                "Leave it out of target_parameters."
            )
    return zeros


def _targets(network: nn.Module, config: "LoraConfig") -> dict[str, nn.Module | nn.Parameter]:
    """Name -> module or parameter that PEFT would put LoRA on; more where PEFT knows the model's type."""
    from peft.tuners.tuners_utils import check_target_module_exists

    modules = {name: module for name, module in network.named_modules() if name and _is_own(name)}
    chosen = config.target_modules
    if isinstance(chosen, (list, set, tuple)) or (isinstance(chosen, str) and chosen != "all-linear"):
        modules = {name: m for name, m in modules.items() if check_target_module_exists(config, name)}
    elif chosen is None and config.target_parameters:
        modules = {}
    else:
        modules = {name: m for name, m in modules.items() if isinstance(_weight(m), Tensor)}
    wanted = config.target_parameters or ()
    parameters = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in network.named_parameters()
        if any(f".{name}".replace(".base_layer", "").endswith(f".{end}") for end in wanted)
    }
    return {**modules, **parameters}


def _is_own(name: str) -> bool:
    """Whether a module is the network's own, and not inside a layer of PEFT."""
    return not {"base_layer", "lora_A", "lora_B", "lora_dropout"} & set(name.split("."))


def _by_layer(
    argument: str,
    network: nn.Module,
    targets: Mapping[str, nn.Module | nn.Parameter],
    pattern: Mapping[str, object],
) -> dict[str, object]:
    """Name of a layer -> the value of the first key that means it."""
    values: dict[str, object] = {}
    for key, value in pattern.items():
        named = [name for name in targets if matches_pattern(key, name)] or _short(network, targets, key)
        if not named:
            known = [*targets]
            close = ", ".join(f"'{name}'" for name in closest_names(key, known))
            raise ValueError(
                f"config.{argument}: '{key}' matches no layer that gets LoRA. "
                f"Closest: {close}, and {len(known)} names in all. Add it to the targets, or remove the key."
            )
        for name in named:
            values.setdefault(name, value)
    return values


def _short(network: nn.Module, targets: Mapping[str, nn.Module | nn.Parameter], key: str) -> Iterable[str]:
    """The targets that are in `attn.3`, `mlp.*` or `wte`."""
    try:
        ids = set(map(id, parameters_of_layer(network, key).values()))
    except ValueError:
        return []
    named = [name for name, target in targets.items() if id(_weight(target)) in ids]
    if key in ("wte", "lm_head"):  # tied, they have one weight
        return [name for name in named if _is_embedding(targets[name]) == (key == "wte")]
    return named


def _weight(target: nn.Module | nn.Parameter) -> object:
    return target if isinstance(target, nn.Parameter) else getattr(target, "weight", None)


def _is_embedding(target: nn.Module | nn.Parameter) -> bool:
    base = getattr(target, "get_base_layer", lambda: target)()
    return isinstance(base, nn.Embedding)
