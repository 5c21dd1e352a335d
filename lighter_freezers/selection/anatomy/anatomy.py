"""What a model is made of: its blocks in forward order, and around them embeddings, final norms and heads.

Found by structure on any module, and told in names only: nothing is changed, and no model is held on to.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from lighter_freezers.selection.anatomy.module_roles import Roles
from lighter_freezers.selection.anatomy.stacks import Row, find_rows
from lighter_freezers.selection.anatomy.trace import first_calls
from lighter_freezers.selection.anatomy.tree import Node, leading, tree_of
from lighter_freezers.selection.names import join, unwrapped

__all__ = ["Anatomy", "Stack", "anatomy_of"]


@dataclass(frozen=True)
class Stack:
    """A row of blocks that run one after the other.

    Attributes:
        title: What tells it from the other stacks of the model: "encoder", "decoder", "layer3", or the path
            of a stage such as "layers.0"; "" for the only stack.
        path: Canonical path of its container.
        block_paths: Canonical path of each block.
        blocks: Of each block the canonical names of its parameters, in forward order.
        final_norms: Names of the norm behind the last of its blocks.
        num_passes: How many blocks one forward runs through. More than `len(blocks)` where layers share
            weights: an ALBERT runs twelve times through one block.
    """

    title: str
    path: str
    block_paths: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    final_norms: tuple[str, ...] = ()
    num_passes: int = 0


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
    """

    model_class: str
    stacks: tuple[Stack, ...]
    embeddings: tuple[str, ...]
    heads: tuple[str, ...]
    others: tuple[str, ...]
    tied: tuple[str, ...] = ()
    predicts_tokens: bool = False

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
        return tuple(join(stack.title, str(i)) for stack in self.stacks for i in range(len(stack.blocks)))

    @property
    def final_norms(self) -> tuple[str, ...]:
        """The norms behind the last block of each stack."""
        return tuple(name for stack in self.stacks for name in stack.final_norms)

    @property
    def head_weights(self) -> tuple[str, ...]:
        """All that the heads use: their own weights and those they share with an embedding."""
        return (*self.heads, *self.tied)

    def top(self, count: int) -> tuple[str, ...]:
        """The last blocks, and the final norm of each stack whose last block is among them.

        Args:
            count: How many blocks, counted from the head: the decoder's before the encoder's.
        """
        first = len(self.blocks) - count
        names: list[str] = []
        for stack in self.stacks:
            for block in stack.blocks:
                names += block if first <= 0 else ()
                first -= 1
            names += stack.final_norms if first < 0 else ()
        return tuple(names)

    def blocks_for(self, purpose: str) -> tuple[tuple[str, ...], ...]:
        """The blocks, of a model that must have some.

        Args:
            purpose: What they are needed for, to begin the error with.

        Raises:
            ValueError: It has none.
        """
        if not self.stacks:
            raise ValueError(
                f"{purpose} needs layers, but {self.model_class} has no blocks: no nn.ModuleList or "
                f"nn.Sequential with repeated modules of one class. Use freeze_by_name(model, patterns); "
                f"see the names: [name for name, _ in model.named_parameters()]"
            )
        return self.blocks


def anatomy_of(model: nn.Module, *, example: object = None) -> Anatomy:
    """Take a model apart, in names.

    Args:
        model: Any module: a network, one wrapped by PEFT, DDP or `torch.compile`, or a LightningModule around
            it. It is only read.
        example: A batch, as for `model(batch)`, or a tuple or a mapping of arguments. One forward pass without
            gradients then tells in which order things run. None to read the order from the source.

    Returns:
        The anatomy; it does not follow if the model gets other layers later.
    """
    root = tree_of(model)
    rows = find_rows(root)
    times = None if example is None else first_calls(model, root, example)
    roles = Roles(root, rows, times)
    if (order := _in_order(rows, roles)) != rows:
        rows, roles = order, Roles(root, order, times)
    blocks: list[list[list[str]]] = [[[] for _ in row.blocks] for row in rows]
    norms: list[list[str]] = [[] for _ in rows]
    places: dict[str, list[str]] = {"embedding": [], "head": [], "other": []}
    for name in root.names():
        role = roles.of[name]
        if role.kind == "block":
            blocks[role.stack][role.block].append(name)
        elif role.kind == "norm":
            norms[role.stack].append(name)
        else:
            places[role.kind].append(name)
    return Anatomy(
        type(unwrapped(model, at_root=True)).__name__,
        _stacks(root, rows, blocks, norms),
        tuple(places["embedding"]),
        tuple(places["head"]),
        tuple(places["other"]),
        tuple(roles.tied),
        bool(roles.tied) or _predicts_tokens(root, places["head"]),
    )


def _in_order(rows: Sequence[Row], roles: Roles) -> list[Row]:
    """The rows in the order in which their first blocks run, and so the blocks in each."""
    order: dict[int, list[int]] = {}
    for number, index in roles.block_order():
        order.setdefault(number, []).append(index)
    return [Row(rows[n].parent, tuple(rows[n].blocks[i] for i in inside)) for n, inside in order.items()]


def _predicts_tokens(root: Node, heads: Iterable[str]) -> bool:
    tables = max((node.module.num_embeddings for node in root.walk() if node.is_table), default=0)
    shapes = (root.parameter(name).shape for name in heads)
    return any(len(shape) > 1 and shape[0] == tables for shape in shapes)


def _stacks(
    root: Node,
    rows: Sequence[Row],
    blocks: Sequence[Sequence[Sequence[str]]],
    norms: Sequence[Sequence[str]],
) -> tuple[Stack, ...]:
    passes = _passes_through_a_group(root, rows)
    titles = _titles([row.parent.path for row in rows])
    return tuple(
        Stack(
            title,
            row.parent.path,
            tuple(block.path for block in row.blocks),
            tuple(map(tuple, own)),
            tuple(final_norms),
            passes or row.num_passes,
        )
        for title, row, own, final_norms in zip(titles, rows, blocks, norms, strict=True)
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


def _titles(paths: Sequence[str]) -> list[str]:
    """Of each path the segments in which it differs from the others, with a name before a lone number."""
    if len(paths) < 2:
        return [""] * len(paths)
    split = [path.split(".") for path in paths]
    first = next(i for i, segments in enumerate(zip(*split, strict=False)) if len(set(segments)) > 1)
    if any(segments[first].isdecimal() for segments in split) and first:
        first -= 1
    shared = next(
        (i for i, ends in enumerate(zip(*map(reversed, split), strict=False)) if len(set(ends)) > 1), 0
    )
    return [".".join(segments[first : len(segments) - shared]) for segments in split]
