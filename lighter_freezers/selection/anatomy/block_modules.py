"""The modules that are the blocks of a model, which the anatomy only names: to hook into or to compile."""

from collections.abc import Sequence

from torch import nn
from torch.nn import Parameter

from lighter_freezers.selection.anatomy.anatomy import Anatomy, anatomy_of
from lighter_freezers.selection.names import canonical_parameters, walk

__all__ = ["block_modules", "parameters_of_blocks"]


def block_modules(model: nn.Module, anatomy: Anatomy) -> list[list[nn.Module]]:
    """Find the module of each block.

    Args:
        model: A module with blocks.
        anatomy: Of this model.

    Returns:
        For each stack its blocks in forward order, with the wrappers that are around them; a block of which
        the model has no module of its own is left out.
    """
    modules: dict[str, nn.Module] = {}
    for path, module in walk(model):
        modules.setdefault(path, module)  # a wrapper comes before what it wraps
    found = []
    for stack in anatomy.stacks:
        found.append([modules[path] for path in stack.block_paths if path in modules])
    return found


def parameters_of_blocks(model: nn.Module, blocks: Sequence[str] | None = None) -> dict[str, list[Parameter]]:
    """The parameters of each block, in forward order: "0", "1", ..., or "encoder.0", ..., "decoder.0", ...

    Args:
        model: A module with blocks.
        blocks: Paths or patterns of the blocks, as for `anatomy_of`. None to find them.

    Raises:
        ValueError: The model has no blocks.
    """
    anatomy, named = anatomy_of(model, blocks=blocks), canonical_parameters(model)
    found = anatomy.blocks_for("parameters_of_blocks")
    return {
        title: [named[name] for name in names]
        for title, names in zip(anatomy.block_titles, found, strict=True)
    }
