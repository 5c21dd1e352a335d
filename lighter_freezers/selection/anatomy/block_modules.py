"""The modules that are the blocks of a model, which the anatomy only names: to hook into or to compile."""

from torch import nn

from lighter_freezers.selection.anatomy.anatomy import Anatomy
from lighter_freezers.selection.names import walk

__all__ = ["block_modules"]


def block_modules(model: nn.Module, anatomy: Anatomy) -> list[list[nn.Module]]:
    """Find the module of each block.

    Args:
        model: Any module.
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
        depth = len(stack.path.split(".")) + 1 if stack.path else 1
        paths = [".".join(names[0].split(".")[:depth]) for names in stack.blocks]
        found.append([modules[path] for path in paths if path in modules])
    return found
