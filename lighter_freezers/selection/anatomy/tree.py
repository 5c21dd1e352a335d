"""A model as a tree of modules in the order in which they run; a module under two paths stands there once."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from lighter_freezers.selection.anatomy.forward_source import CONTAINERS, Reading, read_forward
from lighter_freezers.selection.element_counts import num_dimensions, size_of
from lighter_freezers.selection.names import ROOT_SEGMENTS, join, layout, unwrapped

__all__ = ["Node", "in_run_order", "leading", "tree_of"]

TABLES = (nn.Embedding, nn.EmbeddingBag)
BATCH_NORMS = nn.modules.batchnorm._NormBase
NORMS = (BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
MIXER = re.compile(
    r"attn|attention|mixer|mamba|ssm|rwkv|time_mix|retention|recurrent|linear_attn|hyena|fnet|fourier", re.I
)


class Node:
    """A module that has parameters, or has modules with some.

    Attributes:
        name: What the module around it calls it.
        path: Canonical path, "" for the model.
        module: Free of wrappers.
        holder: What it is a child of; None for the model.
        children: In the order of registration; a module that stood in the tree before is not among them.
        own: Names of its own parameters, each at its first path.
        tied: Its own parameters that stand elsewhere in the tree, and their names there.
        repeated: Modules in it that stand elsewhere in the tree.
        elements: Elements of all parameters in it.
        num_layers: How many modules in it have a matrix: convolutions, linear layers, experts, no tables.
        has_tables: Whether there is a table of embeddings in it.
        shape: The same for modules built alike.
    """

    def __init__(self, name: str, path: str, module: nn.Module) -> None:
        self.name, self.path, self.module = name, path, module
        self.holder: Node | None = None
        self.children: list[Node] = []
        self.own: list[str] = []
        self.tied: dict[str, str] = {}
        self.repeated: list[Node] = []
        self.elements = self.num_layers = self.shape = 0
        self.is_table = self.has_tables = isinstance(module, TABLES)

    @cached_property
    def is_norm(self) -> bool:
        """Whether it only scales and shifts."""
        return not self.num_layers and bool(self.elements) and not self.has_tables

    @cached_property
    def mixes(self) -> bool:
        """Whether it is an attention or what stands for one, by the name of its class or its own."""
        return bool(MIXER.search(self.name) or MIXER.search(type(self.module).__name__))

    @cached_property
    def has_mixer(self) -> bool:
        """Whether there is an attention right in it, or in something in it."""
        return any(child.mixes or any(inner.mixes for inner in child.children) for child in self.children)

    @cached_property
    def is_container(self) -> bool:
        """Whether it only holds other modules."""
        return isinstance(self.module, CONTAINERS) and not self.own

    @cached_property
    def is_adapted(self) -> bool:
        """Whether PEFT put it around a layer: it is that layer still, and no block of factors."""
        return any(child.name == "base_layer" for child in self.children)

    @cached_property
    def reading(self) -> Reading:
        """What its `forward` says."""
        module_class: Any = type(self.module)  # Any: it may have a forward of its own
        found: Reading = read_forward(module_class)
        return found

    @property
    def is_backwards(self) -> bool:
        """Whether the module that holds it runs its members from the last to the first."""
        return self.holder is not None and self.name in self.holder.reading.backwards

    @cached_property
    def run_order(self) -> list["Node"]:
        """Its children in the order of their first calls: those that the source names, in their slots."""
        by_name = {child.name: child for child in self.children}
        inside = [by_name[name] for name in in_run_order(self.reading, list(by_name))]
        return inside[::-1] if self.is_backwards else inside

    @cached_property
    def by_path(self) -> dict[str, "Node"]:
        """It and all in it by their paths, in the order of registration."""
        return {node.path: node for node in self.walk()}

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter of a canonical name below this node."""
        for child in self.children:
            if name.removeprefix(f"{child.name}.") != name:
                return child.parameter(name.removeprefix(f"{child.name}."))
        found = self.module._parameters[name]
        assert found is not None
        return found

    def names(self) -> Iterator[str]:
        """The first canonical name of each parameter in it, in the order of registration."""
        for node in self.walk():
            for key in node.own:
                yield join(node.path, key)

    def walk(self) -> Iterator["Node"]:
        """It and all in it, in the order of registration."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)


def in_run_order(reading: Reading, names: Sequence[str]) -> list[str]:
    """Put the names that a source tells into its order, each into the slot of another; the rest stay."""
    known = set(names)
    told = [name for name in _expanded(reading.order, names) if name in known]
    slots, moved = iter(told), set(told)
    return [next(slots) if name in moved else name for name in names]


def leading(path: str) -> Iterator[str]:
    """The path itself and all paths around it, innermost first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def tree_of(model: nn.Module) -> Node:
    """Put a model into a tree. Wrappers of `torch.compile`, DDP and their kind have no nodes."""
    return _build("", "", model, {}, {})


def _build(name: str, path: str, module: nn.Module, seen: dict[int, Node], first: dict[int, str]) -> Node:
    inner = unwrapped(module, not path) if not ROOT_SEGMENTS.isdisjoint(module._modules) else module
    node = seen[id(inner)] = Node(name, path, inner)
    own, children = layout(module, not path)
    elements = num_layers = 0
    for key, parameter in own.items():
        if parameter is None:
            continue
        if id(parameter) in first:
            node.tied[key] = first[id(parameter)]
        else:
            first[id(parameter)] = f"{path}.{key}" if path else key
            node.own.append(key)
            elements += size_of(parameter)
        num_layers |= _is_matrix(parameter)
    if num_layers and isinstance(inner, (*TABLES, *NORMS)):
        num_layers = 0
    shapes = []
    for key, child in children.items():
        if child is None:
            continue
        known = seen.get(id(child if ROOT_SEGMENTS.isdisjoint(child._modules) else unwrapped(child)))
        if known is not None:
            node.repeated.append(known)
            continue
        below = _build(key, f"{path}.{key}" if path else key, child, seen, first)
        if below.own or below.tied or below.children or below.repeated:
            below.holder = node
            node.children.append(below)
            elements += below.elements
            num_layers += below.num_layers
            node.has_tables |= below.has_tables
            shapes.append(below.shape)
    base = [child for child in node.children if child.name == "base_layer"]
    node.elements, node.num_layers = elements, base[0].num_layers if base else num_layers
    node.shape = hash((type(inner), elements, *shapes))
    return node


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Whether it mixes features; a scale may have the shape (1, 1, features)."""
    dimensions = num_dimensions(parameter)
    return dimensions == 2 or (dimensions > 2 and parameter.shape[:-1].numel() > 1)


def _expanded(order: Sequence[str], names: Sequence[str]) -> list[str]:
    """Write out "layer*" as the names that begin so, in their order."""
    found: dict[str, None] = {}
    for told in order:
        if "*" in told:
            matches = re.compile(re.escape(told).replace(r"\*", ".*")).fullmatch
            found.update(dict.fromkeys(name for name in names if matches(name)))
        else:
            found[told] = None
    return list(found)
