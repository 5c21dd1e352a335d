"""A model as a tree of modules in the order in which they run; a module under two paths stands there once."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import nn

from lighter_freezers.selection.anatomy.forward_source import Reading, read_forward
from lighter_freezers.selection.names import join, layout, unwrapped

__all__ = ["Node", "in_run_order", "leading", "tree_of"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
TABLES = (nn.Embedding, nn.EmbeddingBag)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
MIXER = re.compile(
    r"attn|attention|mixer|mamba|ssm|rwkv|time_mix|retention|recurrent|linear_attn|hyena|fnet|fourier", re.I
)


@dataclass(eq=False)
class Node:
    """A module that has parameters, or has modules with some.

    Attributes:
        name: What the module around it calls it.
        path: Canonical path, "" for the model.
        module: Free of wrappers.
        children: In the order of registration; a module that stood in the tree before is not among them.
        own: Names of its own parameters, each at its first path.
        tied: Its own parameters that stand elsewhere in the tree, and their names there.
        repeated: Names in it of modules that stand elsewhere in the tree, with their nodes.
        own_elements: Elements of its own parameters.
    """

    name: str
    path: str
    module: nn.Module
    children: list["Node"] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    repeated: list[tuple[str, "Node"]] = field(default_factory=list)
    own_elements: int = 0
    own_layers: int = 0

    @cached_property
    def elements(self) -> int:
        """Elements of all parameters in it."""
        return self.own_elements + sum(child.elements for child in self.children)

    @cached_property
    def num_layers(self) -> int:
        """How many modules in it have a matrix: convolutions, linear layers, experts, no tables."""
        return self.own_layers + sum(child.num_layers for child in self.children)

    @cached_property
    def is_table(self) -> bool:
        """Whether it is a table of embeddings."""
        return isinstance(self.module, TABLES)

    @cached_property
    def is_norm(self) -> bool:
        """Whether it only scales and shifts."""
        return not self.num_layers and bool(self.elements) and not self.has_tables

    @cached_property
    def has_tables(self) -> bool:
        """Whether there is a table of embeddings in it."""
        return self.is_table or any(child.has_tables for child in self.children)

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
    def reading(self) -> Reading:
        """What its `forward` says."""
        return read_forward(type(self.module))

    @cached_property
    def shape(self) -> tuple[object, ...]:
        """What is the same for modules built alike."""
        return (type(self.module), self.elements, tuple(child.shape for child in self.children))

    @cached_property
    def run_order(self) -> list["Node"]:
        """Its children in the order of their first calls: those that the source names, in their slots."""
        by_name = {child.name: child for child in self.children}
        return [by_name[name] for name in in_run_order(self.reading, list(by_name))]

    def names(self) -> Iterator[str]:
        """The first canonical name of each parameter in it, in the order of registration."""
        for node in self.walk():
            for key in node.own:
                yield join(node.path, key)

    def walk(self) -> Iterator["Node"]:
        """It and all in it."""
        yield self
        for child in self.children:
            yield from child.walk()


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
    at_root = not path
    node = Node(name, path, unwrapped(module, at_root))
    own, children = layout(module, at_root)
    for key, parameter in own.items():
        if parameter is None:
            continue
        if id(parameter) in first:
            node.tied[key] = first[id(parameter)]
        else:
            first[id(parameter)] = join(path, key)
            node.own.append(key)
            node.own_elements += parameter.numel()
        node.own_layers |= len(parameter.shape) > 1
    if node.own_layers and isinstance(node.module, (*TABLES, *NORMS)):
        node.own_layers = 0
    seen[id(node.module)] = node
    for key, child in children.items():
        if child is None:
            continue
        known = seen.get(id(unwrapped(child)))
        if known is not None:
            node.repeated.append((key, known))
            continue
        below = _build(key, join(path, key), child, seen, first)
        if below.own or below.tied or below.children or below.repeated:
            node.children.append(below)
    return node


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


