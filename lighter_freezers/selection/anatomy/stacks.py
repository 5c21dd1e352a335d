"""The blocks of a model: the outermost things that repeat, found by structure.

A row is a container or a family of numbered attributes whose members are blocks: modules with at least two
layers. Where the members are stages, as in a ResNet or a Swin, the rows inside them are meant. Lists that a
block runs side by side, such as heads, experts and branches, are parts of the block.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from os.path import commonprefix

from torch import nn

from lighter_freezers.selection.anatomy.forward_source import CONTAINERS
from lighter_freezers.selection.anatomy.rows import Row, runs_beside
from lighter_freezers.selection.anatomy.tree import MIXER, Node, leading

__all__ = ["find_rows"]

_NUMBERED = re.compile(r"^(.*?)_?(\d+)(?:[a-z]|_\d+)?$")
_SIDE = re.compile(
    r"downsample|downsampling|downsample_layers?|shortcut|patch_embed(ding)?s?"
)  # between blocks, whatever it is made of
_SLIVER = 0.02  # of the largest row: less is a part of something
_TRUNK_ROWS = 3  # stages with blocks: one of several members run side by side that has them is a tower
_STEM_BLOCKS = 4  # more of them are a backbone, however small, where they have convolutions
_STEM = 0.12  # of the whole: convolutions ahead of a transformer that have less are its stem


def find_rows(root: Node) -> list[Row]:
    """The rows of a model in the order in which they run; those that hold a sliver of it are left out."""
    rows = _rows_below(root, {})
    mixers = [row for row in rows if row.has_mixer]
    classes = {type(block.module) for row in rows for block in row.blocks if block.num_layers > 1}
    deep = [row for row in rows if row.depth > 1 or type(row.blocks[0].module) in classes]
    if mixers:
        tables = sum(node.elements for node in root.walk() if node.is_table)
        least = _STEM * (root.elements - tables)
        families, depths = Counter[str](), Counter[str]()
        for row in deep:
            families[row.family] += row.elements
            depths[row.family] += len(row.blocks)
        backbones = {
            row.family
            for row in deep
            if depths[row.family] > _STEM_BLOCKS and row.has_convolutions and not _is_among(row.family, deep)
        }
        trunks = backbones | {name for name, size in families.items() if size > least}
        kept = {row.family for row in mixers} | trunks
        return _merged(_with_single_blocks(root, _no_slivers([row for row in deep if row.family in kept])))
    if deep:
        return _merged(_with_single_blocks(root, _no_slivers(deep)))
    units = [row for row in rows if any(b.children and not b.is_adapted for b in row.blocks)]
    return _alike(units or rows)


def _is_among(family: str, rows: Sequence[Row]) -> bool:
    """Whether blocks of a transformer run between rows of a family, such as what makes their queries."""
    places = [place for place, row in enumerate(rows) if row.family == family]
    return any(row.has_mixer and row.family != family for row in rows[places[0] : places[-1]])


def _merged(rows: Sequence[Row]) -> list[Row]:
    """Neighbours in one container are one row."""
    merged: list[Row] = []
    for row in rows:
        if merged and merged[-1].parent is row.parent and row.parent.is_container:
            merged[-1] = Row(row.parent, merged[-1].blocks + row.blocks)
        else:
            merged.append(row)
    return merged


def _no_slivers(rows: Sequence[Row]) -> list[Row]:
    families = Counter[str]()
    for row in rows:
        families[row.family] += row.elements
    most = max(families.values(), default=0)
    return [row for row in rows if families[row.family] >= _SLIVER * most or row.has_mixer]


def _with_single_blocks(root: Node, rows: Sequence[Row]) -> list[Row]:
    """Add what stands alone but is of the class of the blocks, such as the bottleneck of a U-Net."""
    classes = {
        type(block.module) for row in rows for block in row.blocks if type(block.module) not in CONTAINERS
    }
    blocks = {id(block) for row in rows for block in row.blocks}
    around = {path for row in rows for path in leading(row.parent.path)}
    found, passed = list(rows), list[Node]()

    def look(node: Node) -> None:
        for child in node.run_order:
            if id(child) in blocks:
                passed.append(child)
                continue
            is_alike = type(child.module) in classes and child.path not in around and child.num_layers > 1
            if is_alike and passed:  # what stands ahead of all blocks is a stem
                found.append(Row(node, (child,)))
            elif not (child.is_container and child.name in node.reading.parallel):
                look(child)

    look(root)
    return found


def _alike(rows: Sequence[Row]) -> list[Row]:
    """Of rows of single layers those of the first class: the linear layers behind a VGG are its head."""
    alike = [row for row in rows if type(row.blocks[0].module) is type(rows[0].blocks[0].module)]
    return [row for row in alike if len(row.blocks) > 1] or alike  # one layer in a list repeats nothing


def _rows_below(node: Node, known: dict[object, bool], *, in_stage: bool = False) -> list[Row]:
    if nested := _nested(node):
        return [Row(node, nested)]
    families = _families(node, in_stage)
    member = {id(child): family for family in families for child in family}
    rows, done = [], set[int]()
    for child in node.run_order:
        family = member.get(id(child))
        if _SIDE.fullmatch(child.name):
            continue
        if family is None:
            is_list = child.is_container and not isinstance(child.module, nn.Sequential)
            is_parallel = is_list and child.name in node.reading.parallel
            inner = child.run_order if is_parallel else [child]
            for each in inner:
                found = _rows_below(each, known, in_stage=in_stage)
                is_trunk = not is_parallel or sum(row.depth > 1 for row in found) >= _TRUNK_ROWS
                rows += [row for row in found if row.has_mixer or is_trunk]  # towers, and no branches
        elif id(family) not in done:
            done.add(id(family))
            rows += _resolved(node, family, known)
    return rows


def _nested(node: Node) -> tuple[Node, ...]:
    """The blocks of a U-Net written as a recursion: `Sequential(down, Skip(Sequential(...)), up)`.

    What goes up to the output last is its head.
    """
    down, up = list[Node](), list[Node]()
    while isinstance(node.module, nn.Sequential) and len(node.children) == 3:
        first, node, last = node.children
        if node.is_container or len(node.children) > 1 or type(first.module) is type(node.module):
            return ()
        down.append(first)
        up.append(last)
        while len(node.children) == 1 and node.children[0].children:
            node = node.children[0]
    return (*down, node, *up[:0:-1]) if len(down) > 1 else ()


def _families(node: Node, in_stage: bool) -> list[list[Node]]:
    """Children that may be blocks of one row; in a stage a block may be alone."""
    children = [child for child in node.run_order if not child.is_table and not child.is_norm]
    if node.is_container and (not isinstance(node.module, nn.ModuleDict) or _is_row_of_names(children)):
        is_list = not isinstance(node.module, nn.Sequential) or (
            in_stage and all(each.num_layers > 1 for each in children)
        )
        family = _main(children, is_list=is_list)
        return [family] if family and (len(family) > 1 or _is_alone(node, family[0], in_stage)) else []
    numbered: dict[str, list[Node]] = {}
    for child in children:
        match = _NUMBERED.match(child.name)
        if match is not None:
            numbered.setdefault(match[1], []).append(child)
    families = [_main(group, is_list=False) for group in numbered.values()]
    found = [
        family
        for family in families
        if len(family) > 1 and family[0].num_layers > 1 and not _run_side_by_side(node, family)
    ]
    return found if in_stage or found else _lines(node, children)


def _lines(node: Node, children: Sequence[Node]) -> list[list[Node]]:
    """Blocks under names without numbers: of one class, and each gets what the one before it computes."""
    kinds: dict[type, list[Node]] = {}
    for child in children:
        is_single = child.num_layers > 1 and not child.has_tables and type(child.module) not in CONTAINERS
        if is_single and not child.mixes:
            kinds.setdefault(type(child.module), []).append(child)
    reading = node.reading

    def is_line(line: Sequence[Node]) -> bool:
        told = all(one.name in reading.feeds.get(two.name, ()) for one, two in pairwise(line))
        return (told or "*" in reading.chained) and not any(map(_holds_blocks, line))

    return [line for line in kinds.values() if len(line) > (1 if line[0].has_mixer else 2) and is_line(line)]


def _holds_blocks(node: Node) -> bool:
    """Whether it is no block but a stack, or a model, of some."""
    rows = _rows_below(node, {})
    return any(row.has_mixer if node.has_mixer else row.depth > 1 for row in rows)


def _run_side_by_side(node: Node, family: Sequence[Node]) -> bool:
    """Whether the source says that none gets what another computes, as the branches of an Inception."""
    names = {child.name for child in family}
    reading = node.reading
    is_told = names <= set(reading.order)
    return is_told and not any(names & reading.feeds[name] for name in names)


def _is_alone(node: Node, only: Node, in_stage: bool) -> bool:
    is_list = isinstance(node.module, (nn.ModuleList, nn.ModuleDict))
    return is_list or (only.num_layers > 1 and (in_stage or only.has_mixer))


def _is_row_of_names(children: Sequence[Node]) -> bool:
    """Whether a dictionary is a row: by numbers in its keys, or by one class of blocks that are no models."""
    if all(_NUMBERED.match(child.name) for child in children):
        return True
    alike = len({type(child.module) for child in children}) == 1 and len(children) > 1
    return alike and not any(child.has_tables for child in children)


def _main(children: Sequence[Node], *, is_list: bool) -> list[Node]:
    """The blocks among the members of a container; without any, the single layers of one class."""
    deep = [child for child in children if child.num_layers > 1]
    if is_list and deep:
        classes = {type(child.module) for child in deep}
        return [child for child in children if child.num_layers > 1 or type(child.module) in classes]
    clusters: list[list[Node]] = []
    kinds: list[dict[type, Node]] = []  # of each cluster, by class
    for child in deep or children:
        alike = (at for at, each in enumerate(kinds) if any(_is_like(child, one) for one in each.values()))
        if (at := next(alike, -1)) < 0:
            clusters.append([])
            kinds.append({})
        clusters[at].append(child)
        kinds[at][type(child.module)] = child
    if not clusters:
        return []
    most = max(
        clusters, key=lambda each: (len(each) > 1, bool(each[0].children), sum(n.elements for n in each))
    )
    if not deep:
        return most
    first, last = (deep.index(most[end]) for end in (0, -1))
    return deep[first : last + 1]


def _is_like(one: Node, other: Node) -> bool:
    """Whether two modules are of one class or of one base shape."""
    if type(one.module) is type(other.module):
        return True
    names, others = ({child.name for child in node.children} for node in (one, other))
    if one.num_layers > 1 and len(names & others) * 2 > len(names | others):
        return True
    if one.has_mixer and other.has_mixer and names & others:
        return True
    first, second = type(one.module).__name__, type(other.module).__name__
    return len(commonprefix([first, second])) > 6


def _resolved(
    parent: Node, family: Sequence[Node], known: dict[object, bool], *, in_stage: bool = False
) -> list[Row]:
    """The row of a family, or the rows inside its members if these are stages."""
    if family[0].num_layers < 2 or not _are_stages(family, known, in_stage):
        return [Row(parent, tuple(family))]
    found = [_rows_of_stage(stage, known) for stage in family]
    classes = {type(block.module) for rows in found for row in rows for block in row.blocks}
    for index, stage in enumerate(family):
        if not found[index]:  # a stage whose blocks have one layer each, or that is a block itself
            alike = tuple(child for child in stage.children if type(child.module) in classes)
            whole = [] if stage.is_container else [Row(parent, (stage,))]
            found[index] = [Row(stage, alike)] if alike else whole
    return [row for rows in found for row in rows]


def _rows_of_stage(stage: Node, known: dict[object, bool]) -> list[Row]:
    """The rows of blocks in a stage; a container of nothing but blocks is one, whatever their classes."""
    deep = [child for child in stage.children if child.num_layers > 1]
    if stage.is_container and deep and all(child in deep or child.is_norm for child in stage.children):
        return _resolved(stage, deep, known, in_stage=True)
    rows = [row for row in _rows_below(stage, known, in_stage=True) if row.depth > 1]
    if rows or not stage.is_container:
        return rows
    is_plain = type(stage.module) in CONTAINERS  # a subclass of nn.Sequential is a block with a name
    alike = len({type(child.module) for child in stage.children}) == 1 and len(stage.children) > 1
    return [Row(stage, tuple(stage.children))] if is_plain and alike and stage.children[0].children else []


def _are_stages(family: Sequence[Node], known: dict[object, bool], in_stage: bool) -> bool:
    shapes = {child.shape for child in family}
    is_pyramid = len(shapes) == len(family) > 1 and (family[0].is_container or not in_stage)
    most = max(family, key=lambda child: child.elements)
    for child in family:
        if child.elements * 10 < most.elements and type(child.module) is type(most.module):
            continue
        key = (child.shape, is_pyramid)
        if key not in known:
            known[key] = _is_stage(child, is_pyramid, known)
        if not known[key]:
            return False
    return True


def _is_stage(node: Node, is_pyramid: bool, known: dict[object, bool]) -> bool:
    """Whether most of a module is a row of blocks, and what it has beside them is no block of its own."""
    rows = _rows_of_stage(node, known)
    inside = sum(row.elements for row in rows)
    least = 3 if all(row.has_mixer for row in rows) else 2
    if (
        not rows
        or inside * least < node.elements
        or any(_is_part(block) for row in rows for block in row.blocks)
    ):
        return False
    if any(map(_is_part, node.children)) or _is_beside(node, rows):
        return False
    repeats = any(_repeats(row.blocks) for row in rows)
    is_pair = node.is_container and not repeats and any(len(row.blocks) > 1 for row in rows)
    if is_pair and not is_pyramid:
        return False  # an attention and its MLP, in a list of two
    return all(row.has_mixer for row in rows) or is_pyramid or (node.is_container and repeats)


def _is_part(block: Node) -> bool:
    """Whether it is the attention of a block, and no block."""
    named = type(block.module).__name__
    is_block = bool(re.search(r"Block|coderLayer", named))
    return bool(MIXER.search(block.name)) or (bool(MIXER.search(named)) and not is_block)


def _is_beside(node: Node, rows: Sequence[Row]) -> bool:
    """Whether rows in a module run side by side, as the branches of an HRNet do."""
    by_path = node.by_path
    for row in rows:
        for path in leading(row.parent.path):
            around, _, name = path.rpartition(".")
            if around in by_path and path != node.path and name in by_path[around].reading.parallel:
                return True
    return any(runs_beside(node, one.blocks[-1], two.blocks[0]) for one, two in pairwise(rows))


def _repeats(blocks: Iterable[Node]) -> bool:
    kinds = ((type(block.module), *(type(child.module) for child in block.children)) for block in blocks)
    return max(Counter(kinds).values()) > 1
