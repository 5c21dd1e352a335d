"""The parts of a model: its blocks in forward order, embeddings, final norms and heads.

They are found by structure in any module, and given as names: nothing is changed, and no reference to the
model is kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from lighter_freezers.selection.anatomy.module_roles import Roles
from lighter_freezers.selection.anatomy.sequential_blocks import blocks_in_sequential
from lighter_freezers.selection.layer_names import BlockStack, find_blocks
from lighter_freezers.selection.names import canonical_parameters, join, named_aliases, unwrapped

__all__ = ["Anatomy", "Stack", "anatomy_of"]


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after another.

    Attributes:
        title: Distinguishes it from the other stacks of the model: "encoder", "decoder", "layer3", or the
            path of a stage such as "layers.0"; "" for the only stack.
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
            purpose: What they are needed for; the error starts with it.

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


def anatomy_of(model: nn.Module) -> Anatomy:
    """Find the parts of a model, as names.

    Args:
        model: Any module: a network, one wrapped by PEFT, DDP or `torch.compile`, or a LightningModule around
            it. It is only read.

    Returns:
        The anatomy; it does not follow if the model gets other layers later.
    """
    found = find_blocks(model)
    if not any(stack.has_attention or stack.num_blocks > 1 for stack in found):
        found = blocks_in_sequential(model) or found
    roles = Roles(model, found)
    blocks: list[list[list[str]]] = [[[] for _ in stack.block_names] for stack in found]
    norms: list[list[str]] = [[] for _ in found]
    places: dict[str, list[str]] = {"embedding": [], "head": [], "other": []}
    tied = []
    for names, num_elements in _aliases(model):
        role = roles.role_of(names, num_elements)
        if role.kind == "block":
            blocks[role.stack][role.block].append(names[0])
        elif role.kind == "norm":
            norms[role.stack].append(names[0])
        else:
            places[role.kind].append(names[0])
        if role.kind == "embedding" and roles.has_head(names, num_elements):
            tied.append(names[0])
    return Anatomy(
        type(unwrapped(model, at_root=True)).__name__,
        _stacks(model, found, blocks, norms),
        tuple(places["embedding"]),
        tuple(places["head"]),
        tuple(places["other"]),
        tuple(tied),
        bool(tied) or _predicts_tokens(model, places["head"]),
    )


def _predicts_tokens(model: nn.Module, heads: Iterable[str]) -> bool:
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    parameters = canonical_parameters(model)
    return any(
        len(p.shape) > 1 and p.shape[0] == max(tables, default=0)
        for p in map(parameters.get, heads)
        if p is not None
    )


def _aliases(model: nn.Module) -> Iterator[tuple[list[str], int]]:
    """The canonical names of each parameter, the first of them first, and its number of elements."""
    names: dict[int, list[str]] = {}
    sizes: dict[int, int] = {}
    for name, parameter in named_aliases(model):
        names.setdefault(id(parameter), []).append(name)
        sizes[id(parameter)] = parameter.numel()
    yield from zip(names.values(), sizes.values(), strict=True)


def _stacks(
    model: nn.Module,
    found: Sequence[BlockStack],
    blocks: Sequence[Sequence[Sequence[str]]],
    norms: Sequence[Sequence[str]],
) -> tuple[Stack, ...]:
    passes = _passes_through_a_group(model)
    titles = _titles([stack.path for stack in found])
    stacks = []
    for title, stack, own, final_norms in zip(titles, found, blocks, norms, strict=True):
        paths = [join(stack.path, name) for name in stack.block_names]
        distinct = [(path, tuple(block)) for path, block in zip(paths, own, strict=True) if block]
        stacks.append(
            Stack(
                title,
                stack.path,
                tuple(path for path, _ in distinct),
                tuple(block for _, block in distinct),  # not the same module once more
                tuple(final_norms),
                passes or stack.num_blocks,
            )
        )
    return tuple(stacks)


def _passes_through_a_group(model: nn.Module) -> int | None:
    """How often an ALBERT runs through the blocks of one of its groups; None for other models."""
    configs = (getattr(module, "config", None) for module in model.modules())
    for config in configs:
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
