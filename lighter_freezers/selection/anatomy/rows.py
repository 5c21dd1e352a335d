"""Rows of blocks as values: where they are, what the user says they are, and whether they can be the layers.

How they are found is in `stacks.py`.
"""

import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lighter_freezers.selection.anatomy.tree import Node, leading
from lighter_freezers.selection.names import closest_names, join, spellings

__all__ = [
    "Row",
    "doubts_about",
    "family_of",
    "rows_said",
    "runs_beside",
    "short_name",
    "titles_of",
    "towers_of",
]

_CONVOLUTIONS = nn.modules.conv._ConvNd
_DEEP_HEAD = 50  # layers: a head that has more of them, and more weights than the blocks, is no head
_TRUNK = 0.25  # of the weights: what has more cannot be a stem


def family_of(path: str) -> str:
    """What the paths of all stages of one trunk have in common."""
    return re.sub(r"\d+", "", path)


@dataclass(frozen=True)
class Row:
    """Blocks that run one after the other.

    Attributes:
        parent: What holds them.
        blocks: In the order in which they run.
    """

    parent: Node
    blocks: tuple[Node, ...]

    @property
    def path(self) -> str:
        """What it is called: the path of its container, or what numbered attributes have in common."""
        if self.parent.is_container:
            return self.parent.path
        names = [block.name for block in self.blocks]
        shared = names[0] if len(names) == 1 else os.path.commonprefix(names).rstrip("0123456789_")
        return join(self.parent.path, shared) if shared else self.parent.path

    @property
    def family(self) -> str:
        """The same for all rows of one trunk."""
        return family_of(self.parent.path)

    @property
    def elements(self) -> int:
        """Elements of all its parameters."""
        return sum(block.elements for block in self.blocks)

    @property
    def has_mixer(self) -> bool:
        """Whether these are blocks of a transformer, or of what stands for one."""
        return any(block.has_mixer for block in self.blocks)

    @property
    def has_convolutions(self) -> bool:
        """Whether they look at pictures or sound; the box heads of a detector have linear layers only."""
        return any(isinstance(node.module, _CONVOLUTIONS) for node in self.blocks[0].walk())

    @property
    def depth(self) -> int:
        """How many layers a block has, 2 for two or more; of several kinds the deepest."""
        return max(min(block.num_layers, 2) for block in self.blocks)

    @property
    def num_passes(self) -> int:
        """How many blocks a forward runs through; one that stands in its list twice counts twice."""
        blocks = set(map(id, self.blocks))
        return len(self.blocks) + sum(id(node) in blocks for node in self.parent.repeated)


def runs_beside(root: Node, one: Node, other: Node) -> bool:
    """Whether the source says that neither of two modules gets what the other computes."""
    paths = ([*leading(node.path)][::-1] for node in (one, other))
    here, there = next(((a, b) for a, b in zip(*paths, strict=False) if a != b), ("", ""))
    holder = root.by_path.get(here.rpartition(".")[0])
    if holder is None:
        return False
    around, _, list_name = holder.path.rpartition(".")
    outer = root.by_path.get(around)
    if holder.is_container and outer is not None and list_name in outer.reading.parallel:
        return True
    names = {path.rpartition(".")[2] for path in (here, there)}
    feeds = holder.reading.feeds
    return names <= set(feeds) and not any(names & feeds[name] for name in names)


def rows_said(root: Node, blocks: Sequence[str]) -> list[Row]:
    """The rows of blocks that the user names.

    Raises:
        ValueError: A pattern matches no module, or a block is inside another.
    """
    by_path = root.by_path
    found: dict[str, Node] = {}
    for pattern in [blocks] if isinstance(blocks, str) else blocks:
        inside = next(filter(None, (_matching(each, by_path) for each in spellings(pattern))), {})
        if not inside:
            close = ", ".join(closest_names(pattern, by_path))
            raise ValueError(
                f"blocks: '{pattern}' is no module with parameters of its own. Closest: {close}."
            )
        found.update(inside)
    for path in found:
        outer = next((each for each in leading(path) if each != path and each in found), None)
        if outer is not None:
            raise ValueError(
                f"blocks: '{path}' is inside '{outer}', which is a block too. Name one of the two."
            )
    rows: list[Row] = []
    for path, node in found.items():
        parent = by_path[path.rpartition(".")[0]]
        if rows and rows[-1].parent is parent:
            rows[-1] = Row(parent, (*rows[-1].blocks, node))
        else:
            rows.append(Row(parent, (node,)))
    return rows


def _matching(pattern: str, by_path: Mapping[str, Node]) -> dict[str, Node]:
    matches = re.compile(r"[^.]*".join(map(re.escape, pattern.split("*")))).fullmatch
    return {path: node for path, node in by_path.items() if path and matches(path)}


def doubts_about(rows: Sequence[Row], stem: Sequence[Node], behind: Sequence[Node]) -> str:
    """Why these rows cannot be the layers of the model; "" if they pass.

    Args:
        rows: As found.
        stem: What runs ahead of them, tables left out.
        behind: What runs behind them.
    """
    if cycle := _alternating(rows):
        return f"a layer would be {len(cycle)} blocks, one in each of {', '.join(cycle)}"
    blocks = sum(row.elements for row in rows)
    ahead, deep = sum(node.elements for node in stem), sum(node.num_layers for node in stem)
    if deep >= 5 and ahead > _TRUNK * (ahead + blocks):
        share = 100 * ahead / (ahead + blocks)
        return f"{deep} layers with {share:.0f} % of the weights would run ahead of them"
    after, deep = sum(node.elements for node in behind), sum(node.num_layers for node in behind)
    if deep >= _DEEP_HEAD and after > blocks:
        share = 100 * after / (after + blocks)
        return f"{deep} layers with {share:.0f} % of the weights would run behind them"
    only = rows[0].blocks[0]
    if (
        len(rows) == len(rows[0].blocks) == 1
        and sum(type(n.module) is type(only.module) for n in only.walk()) > 1
    ):
        return f"one {type(only.module).__name__} would hold others"
    if (holder := next(filter(None, map(_holder, rows)), None)) is not None:
        return f"'{holder.path}' would hold others"
    return ""


def _holder(row: Row) -> Node | None:
    """A block that has most of the weights of its row, and in it others of the kinds beside it."""
    kinds = {type(each.module) for each in row.blocks if each.num_layers > 1 and not each.is_container}
    most = max(row.blocks, key=lambda block: block.elements)
    if len(row.blocks) > 1 and most.elements * 2 > row.elements:
        inside = sum(type(node.module) in kinds for node in most.walk()) - (type(most.module) in kinds)
        return most if inside > 1 else None
    return None


def _alternating(rows: Sequence[Row]) -> list[str]:
    """Paths of lists that run in turns, a block of each at a time; of an XLM its attentions and its MLPs."""
    paths = [family_of(row.path) for row in rows]
    cycle = list(dict.fromkeys(paths))
    turns = len(paths) // len(cycle)
    is_cycle = 1 < len(cycle) < len(paths) and paths == cycle * turns
    is_apart = len({row.blocks[0].mixes or row.has_mixer for row in rows}) > 1
    return cycle if is_cycle and is_apart and any(len(row.blocks) == 1 for row in rows) else []


def titles_of(paths: Sequence[str]) -> list[str]:
    """Of each path the segments in which it differs from the others, with a name before a lone number."""
    if len(set(paths)) < 2:
        return [""] * len(paths)
    split = [path.split(".") for path in paths]
    first = next((i for i, segments in enumerate(zip(*split, strict=False)) if len(set(segments)) > 1), 0)
    if any(segments[first].isdecimal() for segments in split) and first:
        first -= 1
    shared = next(
        (i for i, ends in enumerate(zip(*map(reversed, split), strict=False)) if len(set(ends)) > 1), 0
    )
    return [".".join(segments[first : len(segments) - shared]) for segments in split]


def short_name(title: str) -> str:
    """A title as an address says it: `vision` for `vision_model` and for `vision_tower.encoder`."""
    first = title.split(".")
    name = first[0] if len(first) < 2 or not first[1].isdecimal() else title
    return re.sub(r"_(model|tower|module|branch|backbone)$", "", name)


def towers_of(root: Node, rows: Sequence[Row]) -> list[str]:
    """The name of the tower of each row; "" for all unless the source says that towers run side by side."""
    towers: list[list[int]] = []
    joint: list[int] = []
    for number, row in enumerate(rows):

        def reaches(others: Sequence[int], row: Row = row) -> bool:
            return any(not runs_beside(root, rows[n].blocks[-1], row.blocks[0]) for n in others)

        behind = [tower for tower in towers if reaches(tower)]
        if reaches(joint) or (len(towers) > 1 and len(behind) == len(towers)):
            joint.append(number)
        elif len(behind) > 1:
            return [""] * len(rows)  # what gets the output of some towers makes a line of them
        elif behind:
            behind[0].append(number)
        else:
            towers.append([number])
    if len(towers) < 2:
        return [""] * len(rows)
    short = [short_name(title) for title in titles_of([rows[tower[0]].path for tower in towers])]
    of = {number: name for name, tower in zip(short, towers, strict=True) for number in tower}
    return [of.get(number, "") for number in range(len(rows))]
