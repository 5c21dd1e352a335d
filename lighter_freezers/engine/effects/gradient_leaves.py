"""Which tensors a gradient would reach from here: the leaves of an autograd graph."""

from collections.abc import Iterator

from torch import Tensor

__all__ = ["HIDES_ITS_GRAPH", "gradient_leaves"]

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
    seen, waiting = {tensor.grad_fn}, [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf
        elif node.name() in HIDES_ITS_GRAPH:
            yield None
        following = {fn for fn, _ in node.next_functions if fn is not None} - seen
        seen |= following
        waiting.extend(following)
