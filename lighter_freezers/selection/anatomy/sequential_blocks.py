"""The blocks of a plain `nn.Sequential`, where layers of one kind stand among activations and norms.

Containers of nothing but blocks are found in `layer_names.py`.
"""

from collections import Counter

from torch import nn

from lighter_freezers.selection.layer_names import BlockStack
from lighter_freezers.selection.names import join, layout, unwrapped

__all__ = ["blocks_in_sequential"]

_NOT_A_BLOCK = (nn.Embedding, nn.EmbeddingBag)


def blocks_in_sequential(model: nn.Module) -> list[BlockStack]:
    """Find what repeats in the outermost `nn.Sequential` containers of a model.

    In each the class that occurs at least twice and has the most parameters is that of the blocks, composite
    modules before single layers: `Embedding, Block, Block, LayerNorm, Linear` has two blocks, and
    `Linear, ReLU, Linear, ReLU, Linear` has three. Embeddings and norms are never blocks.

    Args:
        model: Any module.

    Returns:
        A stack for each container that has repeated layers of one class, in model order: that of the first
        composite blocks, else of the first layers. So the linear layers behind the convolutions of a VGG are
        its head.
    """
    stacks = _below(model, "", at_root=True)
    chosen = next((stack for stack in stacks if stack.children), stacks[0] if stacks else None)
    return [stack for stack in stacks if chosen and stack.block_class == chosen.block_class]


def _below(module: nn.Module, path: str, at_root: bool = False) -> list[BlockStack]:
    children = {name: child for name, child in layout(module, at_root)[1].items() if child is not None}
    if isinstance(unwrapped(module, at_root), nn.Sequential):
        stack = _repeated(path, {name: unwrapped(child) for name, child in children.items()})
        if stack is not None:
            return [stack]
    return [stack for name, child in children.items() for stack in _below(child, join(path, name))]


def _repeated(path: str, children: dict[str, nn.Module]) -> BlockStack | None:
    layers = {name: child for name, child in children.items() if _can_be_block(child)}
    times = Counter(type(child) for child in layers.values())
    weights: Counter[tuple[bool, type[nn.Module]]] = Counter()
    for child in layers.values():
        if times[type(child)] > 1:
            weights[bool(child._modules), type(child)] += sum(p.numel() for p in child.parameters())
    if not weights:
        return None
    chosen = max(weights, key=lambda kind: (kind[0], weights[kind]))[1]
    names = tuple(name for name, child in layers.items() if type(child) is chosen)
    return BlockStack(path, names, chosen.__name__, tuple(layout(layers[names[0]])[1]))


def _can_be_block(module: nn.Module) -> bool:
    has_parameters = next(module.parameters(), None) is not None
    return has_parameters and not isinstance(module, _NOT_A_BLOCK) and "Norm" not in type(module).__name__
