"""Which tensors a gradient would reach from here: the leaves of an autograd graph."""

from collections.abc import Iterator

from torch import Tensor
from torch.autograd.graph import Node

__all__ = ["HIDES_ITS_GRAPH", "gradient_leaves", "hides_on_the_way"]

HIDES_ITS_GRAPH = (
    "CheckpointFunctionBackward",
)  # re-entrant checkpointing: the graph does not show its parameters


def gradient_leaves(tensor: Tensor) -> Iterator[Tensor | None]:
    """Find what a backward pass from a tensor would reach, itself if it is a leaf.

    Args:
        tensor: One that requires a gradient.

    Yields:
        Leaves, in no particular order; None for each part of the graph that does not show its leaves.
    """
    if tensor.grad_fn is None:
        yield tensor
        return
    for node in _nodes(tensor.grad_fn):
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf
        elif node.name() in HIDES_ITS_GRAPH:
            yield None


def hides_on_the_way(tensor: Tensor, leaf: Tensor) -> bool:
    """Whether a part of the graph that does not show its leaves is between a tensor and one of its leaves."""
    parts = (node for node in _nodes(tensor.grad_fn) if node.name() in HIDES_ITS_GRAPH)
    return any(getattr(below, "variable", None) is leaf for part in parts for below in _nodes(part))


def _nodes(start: Node | None) -> Iterator[Node]:
    """The nodes of a graph from one of them on, each once."""
    waiting = [start] if start is not None else []
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        following = {fn for fn, _ in node.next_functions if fn is not None} - seen
        seen |= following
        waiting.extend(following)
