"""Freeze the lower layers of a model and train the upper ones, in full or through LoRA, in one call."""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from lighter_freezers.arguments import flag, fraction
from lighter_freezers.layers.changes import say, thaw
from lighter_freezers.layers.first_and_last import freeze_first_n_layers
from lighter_freezers.layers.parts import freeze_embeddings
from lighter_freezers.selection.adapters import adapters_in
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.element_counts import num_elements
from lighter_freezers.selection.names import canonical_parameters

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["setup_lp_lora_style"]


def setup_lp_lora_style(
    model: nn.Module,
    freeze_ratio: float = 0.5,
    freeze_embed: bool = True,
    *,
    lora: "Mapping[str, object] | LoraConfig | None" = None,
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

    Returns:
        The number of elements that trained until now and do no longer.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The share is outside 0 to 1, the model has no blocks, or it has LoRA already.
    """
    freeze_ratio, freeze_embed = fraction("freeze_ratio", freeze_ratio), flag("freeze_embed", freeze_embed)
    if lora is not None and adapters_in(model).trained:
        raise ValueError("The model has LoRA already: leave lora out, or start with a model without it.")
    anatomy = anatomy_of(model)
    num_frozen = int(len(anatomy.blocks_for("setup_lp_lora_style")) * freeze_ratio + 1e-9)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head = [name for name in anatomy.heads if canonical_parameters(model)[name].requires_grad]
    if lora is not None:
        _put_lora(model, num_frozen, freeze_embed, lora)
    if freeze_embed and anatomy.embeddings:
        freeze_embeddings(model)
    freeze_first_n_layers(model, num_frozen)
    if lora is not None and head and not anatomy.predicts_tokens:
        thaw(model, head, "The head")
    return num_elements(parameter for parameter in trained if not parameter.requires_grad)


def _put_lora(
    model: nn.Module, num_frozen: int, without_embeddings: bool, lora: "Mapping[str, object] | LoraConfig"
) -> None:
    """Apply LoRA to what the config targets, except in frozen layers and on frozen embeddings."""
    from lighter_freezers.lora.apply import apply_lora
    from lighter_freezers.lora.peft_configs import network_of

    network = network_of(model)
    anatomy = anatomy_of(network)
    frozen: set[str] = {name for block in anatomy.blocks[:num_frozen] for name in block}
    frozen.update(anatomy.embeddings if without_embeddings else ())
    owners = [re.escape(name.rpartition(".")[0]) for name in sorted(frozen)]
    if isinstance(lora, Mapping):
        excluded = _pattern(owners, lora.get("exclude_modules"))
        apply_lora(network, {**lora, "exclude_modules": excluded})
    else:
        config = copy.deepcopy(lora)
        config.exclude_modules = _pattern(owners, config.exclude_modules)
        apply_lora(network, config)
    num_factors = num_elements(p for p in network.parameters() if p.requires_grad)
    say(f"LoRA in {len(anatomy.blocks) - num_frozen} layers: {num_factors:,} parameters train.")


def _pattern(owners: Iterable[str], excluded: Any) -> str | None:  # PEFT checks it
    """One regular expression for our modules and those in PEFT's `exclude_modules`."""
    if excluded is not None and not isinstance(excluded, str):
        excluded = "|".join(rf"(?:.*\.)?{re.escape(name)}" for name in excluded)
    parts = [*dict.fromkeys(owners), *([f"(?:{excluded})"] if excluded else [])]
    return "|".join(parts) or None
