"""What runs in a model, in order: its blocks, and the parameters around them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from lighter_freezers.selection.anatomy.tree import Node, in_run_order

__all__ = ["Span", "Unit", "last_seen", "sorted_by_calls", "units_of"]

Span: TypeAlias = tuple[int, int]  # row, block


@dataclass(frozen=True)
class Unit:
    """What runs as one: a block, or the parameters of a module outside the blocks, or one such parameter."""

    node: Node
    names: tuple[str, ...]
    span: Span | None = None

    @property
    def path(self) -> str:
        """Of its module."""
        return self.node.path


def units_of(node: Node, spans: Mapping[int, Span]) -> Iterator[Unit]:
    """What runs, in order: lists that one loop runs in turns are taken in turns."""
    if id(node) in spans:
        yield Unit(node, (), spans[id(node)])
        return
    own = [*node.own, *node.tied]
    children = {child.name: child for child in node.children}
    if own and not children:
        yield Unit(node, tuple(own))
        return
    done: set[str] = set()
    if node.is_container:
        names = [*node.own, *(child.name for child in node.run_order)]
    else:
        names = in_run_order(node.reading, [*own, *children])
    for name in names:
        if name in done:
            continue
        if name not in children:
            yield Unit(node, (name,))
            continue
        together = _in_turns(node, children[name])
        done.update(each.name for each in together)
        for member in _taken_in_turns(together):
            yield from units_of(member, spans)
        if not together:
            yield from units_of(children[name], spans)


def _in_turns(node: Node, first: Node) -> list[Node]:
    """The lists that one loop runs in turns with a list, in the order of the loop."""
    size = len(first.children)
    if not first.is_container or isinstance(first.module, nn.Sequential) or size < 2:
        return []
    loop = next((loop for loop in node.reading.loops if first.name in loop), [])
    by_name = {child.name: child for child in node.children}
    lists = [by_name[name] for name in loop if name in by_name]
    together = [each for each in lists if each.is_container and len(each.children) == size]
    if len(together) > 1:
        return together
    feeds = node.reading.feeds
    pair = [each for each in lists if each.is_container and len(each.children) and not each.is_backwards]
    if len(pair) != 2:
        return []
    one, other = pair
    fewer, more = sorted((len(one.children), len(other.children)))
    feed_each_other = other.name in feeds[one.name] and one.name in feeds[other.name]
    return pair if feed_each_other and not more % fewer else []  # a cross attention behind every fourth block


def _taken_in_turns(lists: Sequence[Node]) -> Iterator[Node]:
    """One member of each list at a time; of a longer list as many as it is longer."""
    least = min((len(each.children) for each in lists), default=0)
    for turn in range(least):
        for each in lists:
            share = len(each.children) // least
            yield from each.run_order[turn * share : (turn + 1) * share]


def sorted_by_calls(units: Sequence[Unit], times: Mapping[str, int]) -> list[Unit]:
    """Sort what a trace has seen by its first call, in the slots of the others; the rest stays."""
    first: dict[int, int] = {}
    for unit in units:
        inside = unit.node.walk() if unit.span else () if unit.node.children else (unit.node,)
        seen = [times[node.path] for node in inside if node.path in times]
        if seen:
            first[id(unit)] = min(seen)
    slots = iter(sorted((unit for unit in units if id(unit) in first), key=lambda unit: first[id(unit)]))
    return [next(slots) if id(unit) in first else unit for unit in units]


def last_seen(spans: Sequence[Span | None]) -> list[Span | None]:
    """For each place the last span up to it."""
    seen: Span | None = None
    return [seen := span or seen for span in spans]
