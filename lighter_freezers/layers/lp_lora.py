"""Freeze the lower layers of a model and train the upper ones, in full or through LoRA, in one call."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

from torch import nn

from lighter_freezers.arguments import checked, fraction
from lighter_freezers.layers.changes import say, thaw
from lighter_freezers.layers.first_and_last import freeze_first_n_layers
from lighter_freezers.layers.parts import freeze_embeddings
from lighter_freezers.layers.said import Said, anatomy_said
from lighter_freezers.selection.adapters import adapters_in
from lighter_freezers.selection.element_counts import num_elements
from lighter_freezers.selection.names import canonical_parameters

if TYPE_CHECKING:
    from peft import LoraConfig
    from typing_extensions import Unpack

__all__ = ["setup_lp_lora_style"]


@checked
def setup_lp_lora_style(
    model: nn.Module,
    freeze_ratio: float = 0.5,
    freeze_embed: bool = True,
    *,
    lora: Mapping[str, object] | LoraConfig | None = None,
    **said: Unpack[Said],
) -> int:
    """Freeze the lower layers and the embeddings; the upper layers train, whole or by LoRA.

    | call, a GPT of 12 layers | what trains |
    |---|---|
    | `setup_lp_lora_style(model)` | layers 6 to 11, final norm, head |
    | `setup_lp_lora_style(model, 0.75, freeze_embed=False)` | layers 9 to 11, final norm, head, embeddings |
    | `setup_lp_lora_style(model, lora={"r": 8, "target_modules": ["c_attn"]})` | LoRA in layers 6 to 11 |

    With LoRA all weights of the model are frozen, as in PEFT. A new head, such as a classifier, still trains;
    one that predicts tokens does not.

    Args:
        model: Any module with blocks; with `lora` it gets layers of PEFT in place.
        freeze_ratio: The share of the layers that is frozen, from the input on, 0 to 1, rounded down.
        freeze_embed: Whether the embeddings are frozen too. If a head shares their weight, so is the head,
            with a warning.
        lora: What `apply_lora` takes: a mapping, or a `peft.LoraConfig`. What it targets gets LoRA, except in
            frozen layers and on frozen embeddings. None for no LoRA.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`. Of a model of
            several towers the share of each is frozen.

    Returns:
        The number of elements that trained until now and do no longer.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The share is outside 0 to 1, the model has no blocks, or it has LoRA already.
    """
    freeze_ratio = fraction("freeze_ratio", freeze_ratio)
    if lora is not None and adapters_in(model).trained:
        raise ValueError("The model has LoRA already: leave lora out, or start with a model without it.")
    anatomy = anatomy_said(model, said)
    anatomy.blocks_for("setup_lp_lora_style")
    depths = {name: len(anatomy.blocks_of(name)) for name in anatomy.named_towers(said.get("tower"))}
    frozen = {name: int(depth * freeze_ratio + 1e-9) for name, depth in depths.items()}
    lower = {name for each, n in frozen.items() for block in anatomy.blocks_of(each)[:n] for name in block}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head = [name for name in anatomy.heads if canonical_parameters(model)[name].requires_grad]
    if lora is not None:
        lower.update(anatomy.embeddings if freeze_embed else ())
        kept = {id(parameter) for name, parameter in canonical_parameters(model).items() if name in lower}
        _put_lora(model, kept, f"{sum(depths.values()) - sum(frozen.values())} layers", lora)
    if freeze_embed and anatomy.embeddings:
        freeze_embeddings(model, **said)
    for tower, number in frozen.items():
        of_tower: Said = {**said, "tower": tower or None}
        freeze_first_n_layers(model, number, **of_tower)
    if lora is not None and head and not anatomy.predicts_tokens:
        thaw(model, head, "The head")
    return num_elements(parameter for parameter in trained if not parameter.requires_grad)


def _put_lora(model: nn.Module, kept: Set[int], where: str, lora: Mapping[str, object] | LoraConfig) -> None:
    """Apply LoRA to what the config targets, except in the parameters of some ids."""
    from lighter_freezers.lora.apply import apply_lora, check_module_names
    from lighter_freezers.lora.peft_configs import network_of

    excluded = lora.get("exclude_modules") if isinstance(lora, Mapping) else lora.exclude_modules
    check_module_names("lora: exclude_modules", excluded)
    network = network_of(model)
    frozen = [name for name, parameter in canonical_parameters(network).items() if id(parameter) in kept]
    owners = [re.escape(name.rpartition(".")[0]) for name in sorted(frozen)]
    if isinstance(lora, Mapping):
        apply_lora(network, {**lora, "exclude_modules": _pattern(owners, excluded)})
    else:
        config = copy.deepcopy(lora)
        config.exclude_modules = _pattern(owners, excluded)
        apply_lora(network, config)
    num_factors = num_elements(p for p in network.parameters() if p.requires_grad)
    say(f"LoRA in {where}: {num_factors:,} parameters train.")


def _pattern(owners: Iterable[str], excluded: Any) -> str | None:  # PEFT checks it
    """One regular expression for our modules and those in PEFT's `exclude_modules`."""
    if excluded is not None and not isinstance(excluded, str):
        excluded = "|".join(rf"(?:.*\.)?{re.escape(name)}" for name in excluded)
    parts = [*dict.fromkeys(owners), *([f"(?:{excluded})"] if excluded else [])]
    return "|".join(parts) or None
