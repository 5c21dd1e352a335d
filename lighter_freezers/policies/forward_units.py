"""Units for policies that freeze from the input upwards, and for those that choose among matrices."""

from collections.abc import Sequence

from torch import nn
from torch.nn import Parameter

from lighter_freezers.engine import parameters_of_blocks
from lighter_freezers.selection.anatomy.anatomy import anatomy_of
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["forward_units", "matrix_units"]


def forward_units(model: nn.Module, blocks: Sequence[str] | None = None) -> dict[str, list[Parameter]]:
    """`embeddings`, each block, and `head` with all the rest, in forward order.

    A table whose weight the head uses, too, is with the head.
    """
    named, anatomy = canonical_parameters(model), anatomy_of(model, blocks=blocks)
    embeddings = [named[name] for name in anatomy.embeddings if name not in anatomy.tied]
    units = {"embeddings": embeddings, **parameters_of_blocks(model, blocks)}
    inside = {id(parameter) for unit in units.values() for parameter in unit}
    units["head"] = [parameter for parameter in named.values() if id(parameter) not in inside]
    return {title: unit for title, unit in units.items() if unit}


def matrix_units(model: nn.Module, blocks: Sequence[str] | None = None) -> dict[str, list[Parameter]]:
    """The modules in the blocks that have a matrix, by their paths; LoRA factors belong to their layer."""
    inside = {id(parameter) for block in parameters_of_blocks(model, blocks).values() for parameter in block}
    units: dict[str, list[Parameter]] = {}
    for name, parameter in canonical_parameters(model).items():
        if id(parameter) in inside:
            units.setdefault(_layer(name), []).append(parameter)
    return {path: unit for path, unit in units.items() if any(each.dim() > 1 for each in unit)}


def _layer(name: str) -> str:
    """The path of the layer that a parameter belongs to, without what PEFT puts into it."""
    path = name.split(".")[:-1]
    ours = [i for i, segment in enumerate(path) if segment == "base_layer" or segment[:5] == "lora_"]
    return ".".join(path[: min(ours, default=len(path))])
