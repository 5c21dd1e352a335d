"""The parts of a model: its blocks in forward order, embeddings, final norms and heads.

They are found by structure in any module, and given as names: nothing is changed, and no reference to the
model is kept.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from torch import nn

from lighter_freezers.arguments import checked
from lighter_freezers.selection.anatomy.module_roles import Roles, say_roles
from lighter_freezers.selection.anatomy.rows import (
    Row,
    doubts_about,
    rows_said,
    titles_of,
    towers_of,
)
from lighter_freezers.selection.anatomy.stacks import find_rows
from lighter_freezers.selection.anatomy.trace import calls_of_example, first_calls
from lighter_freezers.selection.anatomy.tree import Node, leading, tree_of
from lighter_freezers.selection.element_counts import num_dimensions
from lighter_freezers.selection.names import join, unwrapped

__all__ = ["Anatomy", "Stack", "anatomy_by_source", "anatomy_of"]


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after another.

    Attributes:
        title: What tells it from the other stacks of the model: "encoder", "decoder", "layer3", or the path
            of a stage such as "layers.0"; "" for the only stack.
        path: Canonical path of its container, or what its blocks' names have in common.
        block_paths: Canonical path of each block.
        blocks: Of each block the canonical names of its parameters, in forward order.
        final_norms: Names of the norm behind the last of its blocks.
        num_passes: How many blocks one forward runs through. More than `len(blocks)` where layers share
            weights: an ALBERT runs twelve times through one block.
        tower: Its tower, such as "vision", in a model of towers that run side by side; else "".
    """

    title: str
    path: str
    block_paths: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    final_norms: tuple[str, ...] = ()
    num_passes: int = 0
    tower: str = ""


@dataclass(frozen=True)
class Anatomy:
    """Each parameter of a model in exactly one place, by canonical name.

    Attributes:
        model_class: Class name of the model, for messages.
        stacks: One for a GPT, a Llama or a BERT; encoder and decoder for a T5 or a BART; one for each stage
            of a ResNet or a Swin; none for a model without repeated blocks.
        embeddings: What the input goes through before the first block: tables, patch convolutions, learned
            positions, class tokens, the stem of a ResNet, and the norms among them. A weight that the head
            shares is here.
        heads: What comes behind the blocks and their norms: an `lm_head`, a classifier, a pooler.
        others: What has no place of its own, such as a temperature, or anything in a model without blocks.
        tied: Names of the embeddings whose weight a head uses too.
        predicts_tokens: Whether a head has an output for each row of the largest embedding.
        doubt: Why the layers that were found were not taken for such, and which they are.
    """

    model_class: str
    stacks: tuple[Stack, ...]
    embeddings: tuple[str, ...]
    heads: tuple[str, ...]
    others: tuple[str, ...]
    tied: tuple[str, ...] = ()
    predicts_tokens: bool = False
    doubt: str = ""

    @property
    def is_head_tied(self) -> bool:
        """Whether a head uses the weight of an embedding."""
        return bool(self.tied)

    @property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """The blocks of all stacks, in forward order."""
        return tuple(block for stack in self.stacks for block in stack.blocks)

    @property
    def block_titles(self) -> tuple[str, ...]:
        """A title for each of `blocks`: "0", "1", ..., or "encoder.0", ..., "decoder.0", ..."""
        count = Counter[str]()
        titles = []
        for stack in self.stacks:
            first = count[stack.title]  # what comes back later counts on
            count[stack.title] += len(stack.blocks)
            titles += [join(stack.title, str(first + i)) for i in range(len(stack.blocks))]
        return tuple(titles)

    @property
    def final_norms(self) -> tuple[str, ...]:
        """The norms behind the last block of each stack."""
        return tuple(name for stack in self.stacks for name in stack.final_norms)

    @property
    def head_weights(self) -> tuple[str, ...]:
        """All that the heads use: their own weights and those they share with an embedding."""
        return (*self.heads, *self.tied)

    @property
    def towers(self) -> dict[str, tuple[Stack, ...]]:
        """The stacks of each tower: all of them under "" unless towers run side by side, as in a CLIP.

        What gets the output of all towers, as the multimodal part of a FLAVA does, is under "" beside them.
        """
        names = dict.fromkeys(stack.tower for stack in self.stacks)
        return {name: tuple(stack for stack in self.stacks if stack.tower == name) for name in names}

    @property
    def levels(self) -> tuple[tuple[str, ...], ...]:
        """The blocks in forward order, those of several towers side by side, counted from the top."""
        return tuple(sum(level, ()) for level in self._side_by_side(self.blocks))

    @property
    def level_titles(self) -> tuple[str, ...]:
        """A title for each of `levels`."""
        titles = self._side_by_side([(title,) for title in self.block_titles])
        return tuple(" + ".join(sum(level, ())) for level in titles)

    def _side_by_side(self, each: Sequence[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
        """What each block has, in lists of those that run side by side."""
        towers: dict[str, list[tuple[str, ...]]] = {name: [] for name in self.towers}
        owners = [stack.tower for stack in self.stacks for _ in stack.blocks]
        for owner, entry in zip(owners, each, strict=True):
            towers[owner].append(entry)
        joint = towers.pop("", [])  # all there is, where there are no towers
        depth = max(map(len, towers.values()), default=0)
        padded = [[()] * (depth - len(tower)) + tower for tower in towers.values()]
        return [[*level] for level in zip(*padded, strict=True)] + [[entry] for entry in joint]

    @property
    def last_stacks(self) -> tuple[Stack, ...]:
        """The stacks that the heads follow: the last of each tower, or of what all towers lead to."""
        return tuple(self.towers[name][-1] for name in self.named_towers(None))

    def blocks_of(self, tower: str) -> tuple[tuple[str, ...], ...]:
        """The blocks of one tower, in forward order; of "" the levels of the model."""
        if not tower:
            return self.levels
        return tuple(block for stack in self.towers[tower] for block in stack.blocks)

    def named_towers(self, tower: str | None) -> list[str]:
        """The towers that are meant: the one asked for, or all, or "" where they end in one line.

        Raises:
            ValueError: There is no such tower.
        """
        if tower is None:
            return [""] if "" in self.towers else list(self.towers)
        if tower not in self.towers or not tower:
            known = ", ".join(filter(None, self.towers)) or "none: its blocks run one after the other"
            raise ValueError(f"tower: {self.model_class} has no tower '{tower}'. Its towers: {known}.")
        return [tower]

    def top(self, count: int, tower: str | None = None) -> tuple[str, ...]:
        """The last blocks, and the final norm of each stack whose last block is among them.

        Args:
            count: How many blocks, counted from the head: the decoder's before the encoder's.
            tower: Of which tower; None for that many of each.
        """
        every = [self.blocks_of(each) for each in self.named_towers(tower)]
        names = [
            name for blocks in every for block in blocks[max(len(blocks) - count, 0) :] for name in block
        ]
        inside = set(names)
        ended = [stack for stack in self.stacks if inside.issuperset(stack.blocks[-1])]
        return (*names, *(name for stack in ended for name in stack.final_norms))

    def blocks_for(self, purpose: str) -> tuple[tuple[str, ...], ...]:
        """The blocks, of a model that must have some.

        Args:
            purpose: What they are needed for; the error starts with it.

        Raises:
            ValueError: It has none.
        """
        if not self.stacks:
            why = f"its layers are uncertain. {self.doubt}" if self.doubt else "no modules in it repeat"
            raise ValueError(
                f"{purpose} needs layers, but {self.model_class} has no blocks: {why}. "
                "Say which they are, as in blocks=['encoder.*'], or use freeze_by_name(model, patterns); "
                "see the names: [name for name, _ in model.named_modules()]"
            )
        return self.blocks


@checked
def anatomy_of(
    model: nn.Module,
    *,
    blocks: Sequence[str] | None = None,
    head: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    example: object = None,
) -> Anatomy:
    """Take a model apart, in names.

    Args:
        model: Any module: a network, one wrapped by PEFT, DDP or `torch.compile`, or a LightningModule around
            it. It is only read.
        blocks: Paths of the modules that are the blocks, in order, or patterns such as `encoder.*`, where a
            star stands for one name. None to find them. What is said wins, and is checked against the model.
        head: Paths of modules or parameters that are the head, whatever was found.
        embeddings: Paths of modules or parameters that are embeddings, whatever was found.
        example: A batch, as for `model(batch)`, or a tuple or a mapping of arguments. One forward pass
            without gradients then tells in which order things run. None for the `example_input_array` of
            the model, and without one to read the order from the source.

    Returns:
        The anatomy; it does not follow if the model gets other layers later.
    """
    root = tree_of(model)
    times = calls_of_example(model, root) if example is None else first_calls(model, root, example)
    return _anatomy(model, root, times, blocks, head, embeddings)


def anatomy_by_source(model: nn.Module) -> Anatomy:
    """The anatomy as the source says it, without a forward pass, even if the model has an example."""
    return _anatomy(model, tree_of(model), None, None, (), ())


def _anatomy(
    model: nn.Module,
    root: Node,
    times: Mapping[str, int] | None,
    blocks: Sequence[str] | None,
    head: Sequence[str],
    embeddings: Sequence[str],
) -> Anatomy:
    rows = find_rows(root) if blocks is None else rows_said(root, blocks)
    roles = Roles(root, rows, times)
    if blocks is None and (order := _in_order(rows, roles)) != rows:
        rows, roles = order, Roles(root, order, times)
    doubt = "" if blocks is not None or not rows else doubts_about(rows, roles.stem(), roles.behind())
    if doubt:
        candidates = ", ".join(f"{row.path or 'the model'} ({len(row.blocks)})" for row in rows)
        doubt = f"{doubt}: {candidates}"
        rows, roles = [], Roles(root, [], times)
    say_roles(root, roles, "head", head)
    say_roles(root, roles, "embedding", embeddings)
    inside: list[list[list[str]]] = [[[] for _ in row.blocks] for row in rows]
    norms: list[list[str]] = [[] for _ in rows]
    places: dict[str, list[str]] = {"embedding": [], "head": [], "other": []}
    for name in root.names():
        role = roles.of[name]
        if role.kind == "block":
            inside[role.stack][role.block].append(name)
        elif role.kind == "norm":
            norms[role.stack].append(name)
        else:
            places[role.kind].append(name)
    return Anatomy(
        type(unwrapped(model, at_root=True)).__name__,
        _stacks(root, rows, inside, norms),
        tuple(places["embedding"]),
        tuple(places["head"]),
        tuple(places["other"]),
        tuple(roles.tied),
        bool(roles.tied) or _predicts_tokens(root, places["head"]),
        doubt,
    )


def _in_order(rows: Sequence[Row], roles: Roles) -> list[Row]:
    """The rows in the order in which their blocks run; of rows that alternate each run is one."""
    return [
        Row(rows[number].parent, tuple(rows[number].blocks[index] for _, index in run))
        for number, run in groupby(roles.block_order(), key=itemgetter(0))
    ]


def _predicts_tokens(root: Node, heads: Iterable[str]) -> bool:
    sizes = (getattr(node.module, "num_embeddings", 0) for node in root.walk() if node.is_table)
    tables = max(map(int, sizes), default=0)
    weights = map(root.parameter, heads)
    return any(num_dimensions(weight) > 1 and weight.shape[0] == tables for weight in weights)


def _stacks(
    root: Node,
    rows: Sequence[Row],
    blocks: Sequence[Sequence[Sequence[str]]],
    norms: Sequence[Sequence[str]],
) -> tuple[Stack, ...]:
    passes = _passes_through_a_group(root, rows)
    titles = titles_of([row.path for row in rows])
    towers = towers_of(root, rows)
    return tuple(
        Stack(
            title,
            row.path,
            tuple(block.path for block in row.blocks),
            tuple(map(tuple, own)),
            tuple(final_norms),
            passes or row.num_passes,
            tower,
        )
        for title, row, own, final_norms, tower in zip(titles, rows, blocks, norms, towers, strict=True)
    )


def _passes_through_a_group(root: Node, rows: Sequence[Row]) -> int | None:
    """How often an ALBERT runs through the blocks of one of its groups; None for other models."""
    around = {path for row in rows for path in leading(row.parent.path)}
    for node in [root, *(node for node in root.walk() if node.path in around)]:
        config = getattr(node.module, "config", None)
        num_groups = getattr(config, "num_hidden_groups", None)
        if config is not None and isinstance(num_groups, int) and num_groups:
            return int(config.num_hidden_layers * config.inner_group_num // num_groups)
    return None
