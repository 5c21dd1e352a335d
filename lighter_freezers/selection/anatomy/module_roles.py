"""What a parameter outside the blocks is for: embedding, final norm, head, or a part of the nearest block.

Its module's class and its place in the order in which things run decide; names do not. The blocks are found
in `stacks.py`.
"""

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lighter_freezers.selection.anatomy.rows import Row, runs_beside
from lighter_freezers.selection.anatomy.tree import BATCH_NORMS, TABLES, Node, leading
from lighter_freezers.selection.anatomy.units import Span, Unit, last_seen, sorted_by_calls, units_of
from lighter_freezers.selection.element_counts import size_of
from lighter_freezers.selection.names import closest_names, join, spellings

__all__ = ["Role", "Roles", "say_roles"]


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


class Roles:
    """The roles of a model's parameters.

    Args:
        root: The model as a tree.
        rows: Its blocks.
        times: Path of a module to when it was called first, of a traced forward pass; None to go by source.

    Attributes:
        of: First canonical name of a parameter to its role.
        tied: Names of embeddings whose weight a head uses.
    """

    def __init__(self, root: Node, rows: Sequence[Row], times: Mapping[str, int] | None = None) -> None:
        self._root, self._rows = root, rows
        self._spans = {
            id(block): (number, index)
            for number, row in enumerate(rows)
            for index, block in enumerate(row.blocks)
        }
        units = list(units_of(root, self._spans))
        self._units = units if times is None else sorted_by_calls(units, times)
        self._before = last_seen([unit.span for unit in self._units])
        self._behind = last_seen([unit.span for unit in self._units][::-1])[::-1]
        self._declared_head = _declared_head(root, [row.parent.path for row in rows])
        self.of: dict[str, Role] = {}
        self.tied: list[str] = []
        self._assign()

    def block_order(self) -> list[Span]:
        """The blocks in the order in which they run."""
        return [unit.span for unit in self._units if unit.span is not None]

    def stem(self) -> list[Node]:
        """What runs ahead of the blocks, tables left out."""
        return self._single(self._before)

    def behind(self) -> list[Node]:
        """What runs behind the blocks, tables left out."""
        return self._single(self._behind)

    def _single(self, seen: Sequence[Span | None]) -> list[Node]:
        plain = (unit.node for unit, span in zip(self._units, seen, strict=True) if span is None)
        return [node for node in plain if not node.is_table and not node.children]

    def _assign(self) -> None:
        roles: dict[str, list[Role]] = {}
        for index, unit in enumerate(self._units):
            if unit.span is not None:
                role = Role("block", *unit.span)
                for name in unit.node.names():
                    roles.setdefault(name, []).append(role)
                continue
            for key in unit.names:
                name = unit.node.tied.get(key, join(unit.path, key))
                roles.setdefault(name, []).append(self._role(index, unit, key))
        for name, found in roles.items():
            kinds = {role.kind: role for role in reversed(found)}
            self.of[name] = kinds.get("embedding") or kinds.get("block") or found[0]
            if "embedding" in kinds and "head" in kinds:
                self.tied.append(name)

    def _role(self, index: int, unit: Unit, key: str) -> Role:
        before, behind = self._before[index], self._behind[index]
        if unit.node.is_table or self._is_in_table(unit.path):
            queried = before is not None and behind is not None and self._is_query(unit, before, behind)
            return Role("block", *behind) if queried and behind else Role("embedding")
        if self._declared_head and self._declared_head in leading(unit.path):
            return Role("head")
        if (before is None and behind is None) or self._is_single_number(unit, key):
            return Role("other")
        if behind is not None and self._is_fed_by(unit, self._rows[behind[0]]):
            return Role("norm", behind[0])
        if before is None:
            assert behind is not None
            is_part = self._is_with_blocks(unit, self._rows[behind[0]])
            return Role("block", *behind) if is_part else Role("embedding")
        if behind is None:
            return self._role_behind(index, unit, before)
        return self._role_between(index, unit, before, behind)

    def _role_behind(self, index: int, unit: Unit, before: Span) -> Role:
        row = self._rows[before[0]]
        if self._is_exit(unit, row):
            return Role("head")
        if (inside := self._in_loop(unit, before[0])) is not None:
            return Role("block", before[0], inside)
        if self._is_in_stage(unit, row):
            return Role("block", *before)
        if row.depth < 2 and isinstance(unit.node.module, BATCH_NORMS) and self._is_next_to(unit, row):
            return Role("block", *before)  # as the norms between the convolutions of a VGG
        return Role("norm", before[0]) if self._is_first_behind(index, unit, before) else Role("head")

    def _is_next_to(self, unit: Unit, row: Row) -> bool:
        return unit.path.rpartition(".")[0] == row.parent.path

    def _in_loop(self, unit: Unit, number: int) -> int | None:
        """The block beside which the loop over a row runs a module; None if it does not."""
        row = self._rows[number]
        rest = self._shared_loop(unit, row)
        if rest is None:
            return None
        is_listed = len(rest) == 2 and rest[1].isdecimal()
        if unit.node.is_norm and (len(rest) == 1 or (is_listed and not self._is_in_pairs(unit, row))):
            return None  # the norm of a stage, or one that a loop also runs on what it returns
        index = int(rest[1]) if len(rest) > 1 and rest[1].isdecimal() else 0
        return min(index, len(row.blocks) - 1)

    def _is_fed_by(self, unit: Unit, row: Row) -> bool:
        """Whether it is the norm of what a list of blocks computes, though a loop names it ahead of them."""
        around, _, name = unit.path.rpartition(".")
        if not unit.node.is_norm or row.parent.path.rpartition(".")[0] != around:
            return False
        feeds = self._root.by_path[around].reading.feeds if around else self._root.reading.feeds
        return row.parent.name in feeds.get(name, ())

    def _is_with_blocks(self, unit: Unit, row: Row) -> bool:
        """Whether it is in a list with a member for each block, and one loop runs it with them."""
        rest = self._shared_loop(unit, row)
        return rest is not None and len(rest) > 1 and rest[1].isdecimal() and self._is_in_pairs(unit, row)

    def _is_exit(self, unit: Unit, row: Row) -> bool:
        """Whether a loop runs it with the blocks and nothing gets what it computes, as a classifier's."""
        rest = self._shared_loop(unit, row)
        if rest is None or unit.node.is_norm:
            return False
        holder = self._root.by_path[unit.path.removesuffix(".".join(rest)).rstrip(".")]
        return not any(rest[0] in told for told in holder.reading.feeds.values())

    def _is_in_pairs(self, unit: Unit, row: Row) -> bool:
        """Whether the list around a module has a member for each block of a row beside it."""
        beside = self._root.by_path[unit.path.rpartition(".")[0]]
        is_beside = beside.path.rpartition(".")[0] == row.parent.path.rpartition(".")[0]
        return is_beside and row.parent.is_container and len(beside.children) == len(row.blocks)

    def _shared_loop(self, unit: Unit, row: Row) -> list[str] | None:
        """The path of a module below the one whose loop runs it and the row; None if there is none."""
        depth = _shared_depth(unit.path, row.parent.path)
        mine, its = unit.path.split(".")[depth:], row.parent.path.split(".")[depth:]
        around = ".".join(unit.path.split(".")[:depth])
        row_list = self._root.by_path.get(join(around, its[0])) if mine and its else None
        if row_list is None or not row_list.is_container:
            return None  # a loop over whole models, as in TimesFM, runs its head too
        loops = self._root.by_path[around].reading.loops
        return mine if any(mine[0] in loop and its[0] in loop for loop in loops) else None

    def _leads_in_loop(self, unit: Unit, row: Row) -> bool:
        """Whether the loop over the stages runs a module ahead of the stage of a row."""
        mine = self._shared_loop(unit, row)
        if mine is None:
            return False
        depth = _shared_depth(unit.path, row.parent.path)
        around, stage = ".".join(unit.path.split(".")[:depth]), row.parent.path.split(".")[depth]
        loops = self._root.by_path[around].reading.loops
        return any(mine[0] in loop and stage in loop[loop.index(mine[0]) :] for loop in loops)

    def _role_between(self, index: int, unit: Unit, before: Span, behind: Span) -> Role:
        one, two = self._rows[before[0]], self._rows[behind[0]]
        to_one, to_two = (_shared_depth(unit.path, row.parent.path) for row in (one, two))
        if one is two or _is_chain(one, two):
            if self._is_side_output(index, unit, one) or self._is_exit(unit, one):
                return Role("head")
            leads = self._leads(unit, one) if one is two else self._leads_in_loop(unit, two)
            return Role("block", *(behind if to_two > to_one or leads else before))
        if (inside := self._in_loop(unit, before[0])) is not None:
            return Role("block", before[0], inside)
        if one.parent.path in leading(unit.path) or self._is_in_stage(unit, one):
            return Role("block", *before)
        if (inside := self._in_loop(unit, behind[0])) is not None:
            return Role("block", behind[0], inside)
        if to_two > to_one:
            is_inside = two.parent.path in leading(unit.path) or (
                not two.has_mixer and not runs_beside(self._root, one.blocks[-1], two.blocks[0])
            )
            return Role("block", *behind) if is_inside else Role("embedding")
        if self._is_first_behind(index, unit, before):
            return Role("norm", before[0])
        return Role("head") if self._ends_here(unit, before[0]) else Role("other")

    def _is_in_stage(self, unit: Unit, row: Row) -> bool:
        """Whether it belongs to the last stage of a trunk, as the downsampling behind its blocks does."""
        others = [each.path for each in self._rows if each is not row and each.family == row.family]
        depth = max((_shared_depth(row.path, other) for other in others), default=-1) + 1
        stage = ".".join(row.path.split(".")[:depth])
        is_norm = unit.node.is_norm and unit.path.rpartition(".")[0] == stage
        return stage not in ("", row.path) and stage in leading(unit.path) and not is_norm

    def _is_side_output(self, index: int, unit: Unit, row: Row) -> bool:
        """Whether it reads a row half-way and no block reads it: the second classifier of an Inception."""
        later = [each.node for each in self._units[index:] if each.span is not None]
        is_whole = row.parent.path == "" or not row.parent.is_container
        return is_whole and all(runs_beside(self._root, unit.node, block) for block in later)

    def _ends_here(self, unit: Unit, number: int) -> bool:
        """Whether no later blocks get what it computes, by the source."""
        later = (block for row in self._rows[number + 1 :] for block in row.blocks)
        return all(runs_beside(self._root, unit.node, block) for block in later)

    def _leads(self, unit: Unit, row: Row) -> bool:
        """Whether pairs in a list begin with it: `up, block, up, block`."""
        members = row.parent.children
        return (
            bool(members)
            and members[0] not in row.blocks
            and type(members[0].module) is type(unit.node.module)
        )

    def _is_query(self, unit: Unit, before: Span, behind: Span) -> bool:
        """Whether a table gives a decoder its queries: read whole, and not looked up."""
        around, _, name = unit.path.rpartition(".")
        holder = self._root.by_path.get(around)
        one, two = (_shared_depth(unit.path, self._rows[span[0]].parent.path) for span in (before, behind))
        is_told = holder is not None and name in holder.reading.order
        return is_told and holder is not None and name not in holder.reading.called and two > one

    def _is_in_table(self, path: str) -> bool:
        return any(self._root.by_path[each].is_table for each in leading(path))

    def _is_single_number(self, unit: Unit, key: str) -> bool:
        """Whether it is a temperature or the like; the bias of a layer with one output is not."""
        parameter = unit.node.module._parameters.get(key)
        is_number = parameter is not None and size_of(parameter) == 1
        return is_number and bool(unit.node.children) and key != "bias"

    def _is_first_behind(self, index: int, unit: Unit, before: Span) -> bool:
        """Whether it is a norm of the trunk: nothing but norms stands between it and the blocks."""
        around = unit.path.rpartition(".")[0]
        if around and unit.node.is_norm and isinstance(self._root.by_path[around].module, nn.ModuleList):
            around = around.rpartition(".")[0]  # a list of norms
        row = self._rows[before[0]]
        is_beside = around == row.parent.path.rpartition(".")[0]
        if unit.node.is_norm and is_beside and not isinstance(unit.node.module, BATCH_NORMS):
            return True
        if (
            self._shared_loop(unit, row) is None
            and around
            and _shared_depth(around, self._rows[before[0]].parent.path) < around.count(".") + 1
        ):
            return False  # inside a head
        start = max(i for i in range(index) if self._units[i].span is not None)
        between = self._units[start + 1 : index + 1]
        return all(
            each.node.is_norm
            or each.node.is_table
            or self._shared_loop(each, row) is not None
            or self._is_in_stage(each, row)
            for each in between
        )


def say_roles(root: Node, roles: Roles, kind: Literal["head", "embedding"], said: Sequence[str]) -> None:
    """Give the role that the user said to all below some paths; a tied weight stays an embedding."""
    if not said:
        return
    every = {name: name for name in root.names()}
    every |= {join(node.path, key): first for node in root.walk() for key, first in node.tied.items()}
    for path in [said] if isinstance(said, str) else said:
        matches = ([name for name in every if each in leading(name)] for each in spellings(path))
        found = next(filter(None, matches), [])
        if not found:
            close = ", ".join(closest_names(path, {each for name in every for each in leading(name)}))
            argument = "head" if kind == "head" else "embeddings"
            raise ValueError(
                f"{argument}: '{path}' is no module or parameter of the model. Closest: {close}."
            )
        tied = [every[name] for name in found if every[name] != name]
        roles.tied += [name for name in tied if name not in roles.tied and kind == "head"]
        roles.of.update(dict.fromkeys(set(found) & set(roles.of), Role(kind)))


def _declared_head(root: Node, stacks: Sequence[str]) -> str:
    """Path of the outermost module around a transformers model's output embeddings; "" if it has none."""
    around = {outer for stack in stacks for outer in leading(stack)}
    for node in root.walk():
        if node.path and not around & {node.path}:
            continue
        declare = getattr(node.module, "get_output_embeddings", None)
        head = declare() if callable(declare) else None
        if head is not None and not isinstance(head, TABLES):
            path = next((each.path for each in root.walk() if each.module is head), "")
            return next((outer for outer in [*leading(path)][::-1] if outer not in around), "")
    return ""


def _is_chain(first: Row, second: Row) -> bool:
    """Whether two neighbouring stacks are stages of one trunk, and not an encoder and a decoder."""
    one, two = first.parent.path.split("."), second.parent.path.split(".")
    return first.family == second.family or one[:-1] == two[:-1]


def _shared_depth(name: str, path: str) -> int:
    """How many segments two paths share from the left."""
    return len(os.path.commonprefix([name.split("."), path.split(".")])) if name and path else 0
