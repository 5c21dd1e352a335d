"""What a parameter outside the blocks is for: embedding, final norm, head, or a part of the nearest block.

Its module's class and its place before or behind the blocks decide, and names only where a model registers
its modules in another order than it runs them. The blocks are found in `layer_names.py`.
"""

import os.path
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from lighter_freezers.selection.layer_names import GLOBAL_LAYERS, BlockStack
from lighter_freezers.selection.names import join, named_aliases, walk

__all__ = ["Role", "Roles"]

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# BART runs its `layernorm_embedding` before its blocks and OPT its `project_out` behind them.
AHEAD, BEHIND = "emb", frozenset({"project_out"})


@dataclass(frozen=True)
class Role:
    """Where a parameter belongs.

    Attributes:
        kind: "block" also for what stands between two blocks, such as the downsampling of a Swin.
        stack: Index of the stack, for the kinds "block" and "norm".
        block: Index of the block in that stack, for the kind "block".
    """

    kind: Literal["embedding", "norm", "head", "block", "other"]
    stack: int = 0
    block: int = 0


Span: TypeAlias = tuple[int, int]  # stack, block


class Roles:
    """The roles of a model's parameters.

    Args:
        model: Any module.
        stacks: Its blocks, in model order.
    """

    def __init__(self, model: nn.Module, stacks: Sequence[BlockStack]) -> None:
        self._modules = dict(walk(model))
        self._stacks = stacks
        self._blocks: Mapping[str, Span] = {
            join(stack.path, name): (number, index)
            for number, stack in enumerate(stacks)
            for index, name in enumerate(stack.block_names)
        }
        self._names = [name for name, _ in named_aliases(model)]
        self._spans = [self._block_of(name) for name in self._names]
        self._position = {name: index for index, name in enumerate(self._names)}
        self._neighbours = list(zip(_last_seen(self._spans), _next_seen(self._spans), strict=True))
        self._declared_head = _declared_head(self._modules, [stack.path for stack in stacks])

    def role_of(self, names: Sequence[str], num_elements: int) -> Role:
        """What a parameter is for.

        Args:
            names: All its canonical names, in model order.
            num_elements: How large it is: a single number, such as a temperature, is no embedding.
        """
        if any(map(self._is_embedding, names)):
            return Role("embedding")
        span = next(filter(None, map(self._block_of, names)), None)
        return Role("block", *span) if span else self._role(names[0], num_elements)

    def has_head(self, names: Sequence[str], num_elements: int) -> bool:
        """Whether one of the names of a parameter is that of a head's weight."""
        return any(self._role(name, num_elements).kind == "head" for name in names if len(names) > 1)

    def _block_of(self, name: str) -> Span | None:
        return next((self._blocks[path] for path in _leading(name) if path in self._blocks), None)

    def _is_embedding(self, name: str) -> bool:
        """Whether a parameter belongs to a table of embeddings outside the blocks."""
        paths = _leading(_owner(name))
        is_table = any(isinstance(self._modules.get(path), EMBEDDINGS) for path in paths)
        return is_table and self._block_of(name) is None

    def _role(self, name: str, num_elements: int) -> Role:
        before, behind = self._neighbours[self._position[name]]
        if self._is_embedding(name):
            return Role("embedding")
        if self._declared_head in _leading(name):
            return Role("head")
        if before is None and behind is None:
            return Role("other")
        if behind is not None and self._is_late(name, behind):
            return Role("norm" if self._is_norm(name) else "head", behind[0])
        if before is not None and behind is not None and self._is_inside(before, behind):
            return Role("block", *(behind if self._is_closer(name, behind, before) else before))
        if behind is not None and (before is None or self._is_closer(name, behind, before)):
            return Role("other" if num_elements == 1 and "." not in name else "embedding")
        assert before is not None
        if self._is_first_behind(name, before):
            return Role("embedding" if AHEAD in _last(_owner(name)) else "norm", before[0])
        return Role("head" if behind is None else "other")

    def _is_inside(self, before: Span, behind: Span) -> bool:
        """Whether what stands there runs between two blocks of one stack or of a chain of stacks."""
        return before[0] == behind[0] or _is_chain(self._stacks[before[0]], self._stacks[behind[0]])

    def _is_closer(self, name: str, this: Span, that: Span) -> bool:
        depths = [_shared_depth(name, self._stacks[number].path) for number, _ in (this, that)]
        return depths[0] > depths[1]

    def _is_late(self, name: str, behind: Span) -> bool:
        """Whether it stands right before a stack that it runs behind."""
        owner = _owner(name)
        is_beside = _owner(owner) == _owner(self._stacks[behind[0]].path)
        return is_beside and (_last(owner) in BEHIND or GLOBAL_LAYERS.get(_last(owner)) == "ln_f")

    def _is_first_behind(self, name: str, before: Span) -> bool:
        """Whether it is a norm of the trunk: nothing but norms stands between it and the blocks."""
        around, path = _owner(_owner(name)), self._stacks[before[0]].path
        if around and _shared_depth(around, path) < len(around.split(".")):
            return False  # inside a head
        position = self._position[name]
        start = max(index for index in range(position) if self._spans[index])
        between = self._names[start + 1 : position + 1]
        return all(self._is_norm(other) or self._is_embedding(other) for other in between)

    def _is_norm(self, name: str) -> bool:
        return "Norm" in type(self._modules[_owner(name)]).__name__


def _declared_head(modules: Mapping[str, nn.Module], stacks: Sequence[str]) -> str:
    """Path of the outermost module around a transformers model's output embeddings; "" if it has none.

    An XLM-RoBERTa registers its `lm_head` ahead of its blocks.
    """
    declares = (getattr(module, "get_output_embeddings", None) for module in modules.values())
    heads = (declare() for declare in declares if callable(declare))
    head = next((head for head in heads if head is not None and not isinstance(head, EMBEDDINGS)), None)
    path = next((path for path, module in modules.items() if module is head), "")
    around = {outer for stack in stacks for outer in _leading(stack)}
    return next((outer for outer in reversed(list(_leading(path))) if outer not in around), "")


def _is_chain(first: BlockStack, second: BlockStack) -> bool:
    """Whether two neighbouring stacks are stages of one trunk, and not an encoder and a decoder."""
    one, two = first.path.split("."), second.path.split(".")
    depth = len(os.path.commonprefix([one, two]))
    if one[:-1] == two[:-1]:
        return True
    return depth < min(len(one), len(two)) and one[depth].isdecimal() and two[depth].isdecimal()


def _shared_depth(name: str, path: str) -> int:
    """How many segments two paths share from the left."""
    return len(os.path.commonprefix([name.split("."), path.split(".")]))


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _leading(path: str) -> Iterator[str]:
    """The path itself and all paths around it, innermost first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _last_seen(spans: Sequence[Span | None]) -> list[Span | None]:
    seen: Span | None = None
    return [seen := span or seen for span in spans]


def _next_seen(spans: Sequence[Span | None]) -> list[Span | None]:
    return _last_seen(spans[::-1])[::-1]
