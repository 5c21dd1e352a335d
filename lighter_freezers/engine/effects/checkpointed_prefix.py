"""Passes over what re-entrant checkpointing would compute again of a frozen prefix, where nothing learns.

Re-entrant checkpointing runs a segment without a graph, and again in the backward pass. A gradient has to
arrive at each segment, so one of a frozen prefix costs three products instead of one. The graph does not show
the parameters of a segment; the first backward pass after a transition looks at what it computes again.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lighter_freezers.engine.effects.gradient_leaves import HIDES_ITS_GRAPH, gradient_leaves

__all__ = ["CheckpointedPrefix", "gradient_end", "segments_of"]

_Run: TypeAlias = Callable[..., object]


class _Segment(Protocol):
    """A node of re-entrant checkpointing, for which torch has no type."""

    run_function: _Run  # what the backward pass runs again


def segments_of(hidden: Tensor) -> list[_Segment]:
    """The re-entrant segments that follow directly one after another up to here, the last one first."""
    found: list[_Segment] = []
    node = hidden.grad_fn
    while node is not None and node.name() in HIDES_ITS_GRAPH:
        found.append(cast(_Segment, node))
        before = {inner for inner, _ in node.next_functions if inner is not None}
        node = before.pop() if len(before) == 1 else None
    return found


class CheckpointedPrefix:
    """The segments of one frozen prefix: what is known of them since the last transition."""

    def __init__(self) -> None:
        self._looked_at: set[int] = set()
        self.learns = False  # something in a segment does, or its output is of another shape than its input

    def end_gradient(self, segments: list[_Segment]) -> None:
        """End the gradient below these segments, and above them as soon as it is known that none learns.

        Args:
            segments: Those of the prefix, the last one first. Nothing below them learns through them.
        """
        is_known = not self.learns and self._looked_at == set(range(len(segments)))
        for number, segment in enumerate(segments):
            if is_known:
                segment.run_function = _end
            elif segment is segments[-1]:
                segment.run_function = self._looking(number, segment.run_function, ends=True)
            elif not self.learns:
                segment.run_function = self._looking(number, segment.run_function)

    def _looking(self, number: int, run: _Run, *, ends: bool = False) -> _Run:
        def look(*inputs: object) -> object:
            place, hidden = _hidden(inputs)
            ended = _End.apply(hidden) if ends else hidden
            output = run(*inputs[:place], ended, *inputs[place + 1 :])
            first = output[0] if isinstance(output, tuple) else output
            made = [each for each in tree_leaves(output) if isinstance(each, Tensor) and each.requires_grad]
            leaves = {id(leaf) for each in made for leaf in gradient_leaves(each)}
            self._looked_at.add(number)
            is_alike = isinstance(first, Tensor) and first.shape == hidden.shape
            self.learns = self.learns or not is_alike or not leaves <= set(map(id, inputs))
            return output

        return look


def _hidden(inputs: tuple[object, ...]) -> tuple[int, Tensor]:
    """The input through which the gradient goes on, and its place."""
    found = ((place, each) for place, each in enumerate(inputs) if isinstance(each, Tensor))
    return next((place, each) for place, each in found if each.requires_grad)


def _end(*inputs: object) -> Tensor:
    """In place of a segment: its input, from which no gradient goes on."""
    ended = _End.apply(_hidden(inputs)[1])
    assert isinstance(ended, Tensor)
    return ended


class _End(torch.autograd.Function):
    """Hands a tensor on, and gives it a gradient of zero."""

    @staticmethod
    def forward(ctx: object, hidden: Tensor) -> Tensor:
        """The same values."""
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(gradient)


def gradient_end(leaf: Tensor, hidden: Tensor) -> Tensor:
    """Hidden states in the same memory that require a gradient, of which nothing arrives at the leaf."""
    ended = _OnlyLeaf.apply(leaf, hidden)
    assert isinstance(ended, Tensor)
    return ended


class _OnlyLeaf(torch.autograd.Function):
    """Puts a leaf below hidden states; unlike a leaf itself, they may be changed in place."""

    @staticmethod
    def forward(ctx: object, leaf: Tensor, hidden: Tensor) -> Tensor:
        """The same values."""
        return hidden.detach()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[None, None]:
        """Nothing."""
        return None, None
