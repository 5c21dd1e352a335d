"""The order in which the layers of a model thaw, from their place in it. `thaw_pace.py` decides when."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lighter_freezers.engine import ledger
from lighter_freezers.layers.said import Said, anatomy_said
from lighter_freezers.selection.anatomy import Anatomy
from lighter_freezers.selection.anatomy.addresses import home_of
from lighter_freezers.selection.anatomy.tree import leading
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["Direction", "Layer", "Layers", "cut_into_stages", "layers_of"]

Direction = Literal["top-down", "bottom-up"]


@dataclass(frozen=True)
class Layer:
    """Parameters that thaw together.

    Attributes:
        title: Its name in logs: `head`, `h.3`, `embeddings`.
        names: Canonical names of its parameters, in model order.
        depth: Layers above it in which anything can train: 0 for the head, 1 for the top block.
    """

    title: str
    names: tuple[str, ...]
    depth: int


@dataclass(frozen=True)
class Layers:
    """A model divided into layers: each parameter is in one of them.

    Attributes:
        head: What is above all blocks: heads, the last final norm, poolers, a tied embedding.
        blocks: Those in which anything can train, from the top down; of an encoder-decoder the decoder first.
        embeddings: What is below all blocks; None where nothing in it can train.
        can_begin_with_head: Whether anything in the head can train.
        left_out: Names of all other blocks: the user has frozen them, not for the sake of adapters.
    """

    head: Layer
    blocks: tuple[Layer, ...]
    embeddings: Layer | None
    can_begin_with_head: bool
    left_out: tuple[str, ...] = ()

    def factors(self, lowest: float, highest: float) -> dict[str, float]:
        """A factor for each name, from the lowest layer to the highest with equal ratios between them."""
        layers = [*self.blocks, *filter(None, [self.embeddings]), self.head]
        bottom = max(layer.depth for layer in layers)
        ratio = (lowest / highest) ** (1 / max(1, bottom))
        return {name: highest * ratio**layer.depth for layer in layers for name in layer.names}


def layers_of(model: nn.Module, said: Said | None = None) -> Layers:
    """Cut a model into head, blocks and embeddings.

    An embedding that is tied to the head belongs to the head, and so do the norm after the last block and
    what has no place of its own, such as a temperature. The norm after another stack, such as an encoder's,
    belongs to the last block of that stack. What the user has frozen is not a layer to thaw.

    Raises:
        ValueError: The model has no blocks, or none in which anything can train.
    """
    anatomy = anatomy_said(model, said or {})
    if not anatomy.blocks:
        why = anatomy.doubt or "no modules in it repeat"
        raise ValueError(
            f"{anatomy.model_class} has no blocks that could thaw one after another: {why}. "
            "Use a Freezer with until_epoch for each of its parts."
        )
    parameters = canonical_parameters(model)
    trainable = {name for name, parameter in parameters.items() if not ledger.is_user_frozen(parameter)}
    last_norms = (name for stack in anatomy.last_stacks for name in stack.final_norms)
    names_of_head = {*anatomy.head_weights, *last_norms, *anatomy.others}
    head = Layer("head", tuple(name for name in parameters if name in names_of_head), 0)
    own = _own_names(anatomy, parameters, (said or {}).get("tower"))
    below = tuple(name for name in anatomy.embeddings if name not in names_of_head and name in own)
    levels = [(title, tuple(filter(own.__contains__, names))) for title, names in _blocks(anatomy)]
    blocks = [(title, names) for title, names in levels if not trainable.isdisjoint(names)]
    is_by_hand = not any("lora_" in name for name in parameters)
    left_out = [f"block {title}" for title, names in levels if names and trainable.isdisjoint(names)]
    if not blocks:
        raise ValueError(
            f"Nothing can train in any of the {len(anatomy.blocks)} blocks of {anatomy.model_class}: "
            "requires_grad is False there before any freezer holds them. Switch it on for what is to thaw."
        )
    can_begin = not trainable.isdisjoint(head.names)
    depth = 1 if can_begin else 0  # of the top block
    return Layers(
        head=head,
        blocks=tuple(
            Layer(f"block {title}", names, depth + index)
            for index, (title, names) in enumerate(reversed(blocks))
        ),
        embeddings=None if trainable.isdisjoint(below) else Layer("embeddings", below, depth + len(blocks)),
        can_begin_with_head=can_begin,
        left_out=tuple(left_out) if is_by_hand else (),
    )


def _own_names(anatomy: Anatomy, names: Iterable[str], tower: str | None) -> set[str]:
    """What belongs to a tower; everything for None."""
    if tower is None:
        return set(names)
    anatomy.named_towers(tower)
    stacks = anatomy.towers[tower]
    home = home_of(anatomy, stacks)
    inside = {name for stack in stacks for block in stack.blocks for name in block}
    return inside | {name for name in names if home and home in leading(name)}


def _blocks(anatomy: Anatomy) -> list[tuple[str, tuple[str, ...]]]:
    """Title and names of each level in forward order, the last of an inner stack with the norm behind it.

    A level is a block, or the blocks of several towers that thaw side by side.
    """
    ends = {stack.blocks[-1][0]: stack.final_norms for stack in anatomy.stacks}
    last = {stack.blocks[-1][0] for stack in anatomy.last_stacks}
    levels = [
        sum((ends[name] for name in level if name in ends and name not in last), level)
        for level in anatomy.levels
    ]
    return list(zip(anatomy.level_titles, levels, strict=True))


def cut_into_stages(
    layers: Layers,
    direction: Direction,
    num_blocks: Sequence[int],
    embeddings: int | None,
) -> list[tuple[Layer, ...]]:
    """The layers that thaw at the start of each stage.

    Args:
        layers: Of the model.
        direction: Whether the blocks thaw from the head downwards, or from the embeddings upwards.
        num_blocks: How many blocks train in each stage, never fewer than in the previous one.
        embeddings: The stage in which the embeddings thaw; None for never.

    Returns:
        For each stage the layers that thaw in it; a stage may have none. What thaws in the first stage is
        never frozen.
    """
    order = layers.blocks if direction == "top-down" else layers.blocks[::-1]
    bounds = [0, *num_blocks]
    stages = [list(order[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)]
    stages[0].insert(0, layers.head)
    if layers.embeddings is not None and embeddings is not None:
        stages[embeddings].append(layers.embeddings)
    return [tuple(stage) for stage in stages]
