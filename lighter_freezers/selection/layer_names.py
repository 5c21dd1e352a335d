"""Short layer names: `transformer.h.3.attn.c_attn.weight` is part of `attn.3`.

The only room that knows how GPT-2, Llama, OPT, GPT-NeoX, BERT and their relatives call their parts.
`select.py` decides which parameters a rule selects.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from lighter_freezers.selection.names import (
    WRAPPERS,
    canonical_parameters,
    closest_names,
    join,
    layout,
    named_aliases,
    unwrapped,
    without_wrapper,
)

__all__ = [
    "BlockStack",
    "components",
    "expand_layers",
    "find_blocks",
    "parameters_of_layer",
]

WHOLE_BLOCK = "block"
Place: TypeAlias = tuple[str, int | None]  # ("attn", 3) or, outside the blocks, ("wte", None)
FEEDFORWARD_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")

# Path inside a block -> part; the longest path decides. ln_1 belongs to the attention, ln_2 to the MLP.
BLOCK_PARTS: Mapping[str, str] = {
    **dict.fromkeys(("attn", "self_attn", "attention", "self_attention"), "attn"),
    **dict.fromkeys(("mlp", "ffn", "intermediate", "output", "fc1", "fc2"), "mlp"),
    **dict.fromkeys(("ln_1", "norm_1", "input_layernorm"), "ln_1"),
    **dict.fromkeys(("self_attn_layer_norm", "sa_layer_norm", "attention.output.LayerNorm"), "ln_1"),
    **dict.fromkeys(("ln_2", "norm_2", "post_attention_layernorm"), "ln_2"),
    **dict.fromkeys(("final_layer_norm", "output_layer_norm", "output.LayerNorm"), "ln_2"),
    **dict.fromkeys(FEEDFORWARD_NORMS, "ln_2"),
}
# In Gemma 2 and OLMo 2 the MLP has norms of its own, and this one is on the attention's output.
SANDWICH_PARTS: Mapping[str, str] = {**BLOCK_PARTS, "post_attention_layernorm": "ln_1"}

# Path outside the blocks, seen from the modules around them -> layer.
GLOBAL_LAYERS: Mapping[str, str] = {
    **dict.fromkeys(("wte", "embed_tokens", "embed_in"), "wte"),
    **dict.fromkeys(("word_embeddings", "embeddings.word_embeddings"), "wte"),
    **dict.fromkeys(("wpe", "embed_positions", "embeddings.position_embeddings"), "wpe"),
    **dict.fromkeys(("ln_f", "norm", "norm_f", "final_layernorm", "final_layer_norm"), "ln_f"),
    **dict.fromkeys(("lm_head", "embed_out", "cls.predictions"), "lm_head"),
    **dict.fromkeys(("generator_predictions", "generator_lm_head"), "lm_head"),
    **dict.fromkeys(("vocab_transform", "vocab_layer_norm", "vocab_projector"), "lm_head"),
}


@dataclass(frozen=True)
class BlockStack:
    """A container of repeated blocks.

    Attributes:
        path: Canonical path of the container, for example `transformer.h`.
        block_names: Names of the blocks inside it, in order: "0", "1", ... unless a Sequential names them.
        block_class: Class name of the blocks.
        children: Names of the modules inside the first block.
    """

    path: str
    block_names: tuple[str, ...]
    block_class: str
    children: tuple[str, ...]

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return len(self.block_names)

    @property
    def has_attention(self) -> bool:
        """Whether the blocks are transformer blocks."""
        return any(BLOCK_PARTS.get(child) == "attn" for child in self.children)


def find_blocks(model: nn.Module) -> list[BlockStack]:
    """Find the repeated blocks of a model by its structure.

    A stack is an outermost `nn.ModuleList` or `nn.Sequential` whose children all have parameters and one
    class. If there are stacks of transformer blocks, only these count; if not, those whose blocks are made of
    modules.

    Args:
        model: Any module: a network, or a LightningModule around it.

    Returns:
        The stacks in model order: one for GPT, Llama or BERT, two for an encoder-decoder, one per stage for a
        ResNet or a Swin, none for a model without repeated blocks.
    """
    stacks = list(_stacks_below(model, "", at_root=True))
    transformers = [stack for stack in stacks if stack.has_attention]
    composites = [stack for stack in stacks if stack.children]
    return transformers or composites or stacks


def _stacks_below(module: nn.Module, path: str, at_root: bool = False) -> Iterator[BlockStack]:
    children = {name: child for name, child in layout(module, at_root)[1].items() if child is not None}
    stack = _as_stack(module, path, children)
    if stack is not None and (stack.has_attention or stack.num_blocks > 1):
        stages = [] if stack.has_attention else _blocks_of_stages(path, children)
        yield from stages or [stack]
        return
    inner = [found for name, child in children.items() for found in _stacks_below(child, join(path, name))]
    if stack is not None and not inner:  # a container of one module is a stack if there is none inside
        inner = [stack]
    yield from inner


def _blocks_of_stages(path: str, stages: Mapping[str, nn.Module]) -> list[BlockStack]:
    """The stack inside each stage of a pyramid, as in Swin or ResNet; none if these are blocks themselves."""
    inside = [list(_outermost(stage, join(path, name))) for name, stage in stages.items()]
    found = [stack for stacks in inside for stack in stacks]
    if not all(inside) or all(stack.has_attention for stack in found):
        return found if all(inside) else []
    shapes = {tuple(parameter.shape for parameter in stage.parameters()) for stage in stages.values()}
    is_pyramid = len(shapes) == len(stages) and all(stack.children for stack in found)
    return found if is_pyramid else []


def _outermost(module: nn.Module, path: str) -> Iterator[BlockStack]:
    children = {name: child for name, child in layout(module)[1].items() if child is not None}
    if (stack := _as_stack(module, path, children)) is not None:
        yield stack
        return
    for name, child in children.items():
        yield from _outermost(child, join(path, name))


def _as_stack(module: nn.Module, path: str, children: Mapping[str, nn.Module]) -> BlockStack | None:
    if not children or not isinstance(unwrapped(module), (nn.ModuleList, nn.Sequential)):
        return None
    classes = {type(unwrapped(child)) for child in children.values()}
    if len(classes) > 1 or any(next(child.parameters(), None) is None for child in children.values()):
        return None
    inside = layout(next(iter(children.values())))[1]
    return BlockStack(path, tuple(children), classes.pop().__name__, tuple(inside))


class _Anatomy:
    """The stacks of one model, and from them the place of each parameter name."""

    def __init__(self, model: nn.Module) -> None:
        self.model_class = type(unwrapped(model, at_root=True)).__name__
        self.stacks = find_blocks(model)
        self.is_transformer = any(stack.has_attention for stack in self.stacks)
        self._block_index = {
            join(stack.path, name): index
            for stack in self.stacks
            for index, name in enumerate(stack.block_names)
        }
        self._around = {"", *WRAPPERS}.union(*(_leading_paths(stack.path) for stack in self.stacks))
        children = {child for stack in self.stacks for child in stack.children}
        self._parts = BLOCK_PARTS if children.isdisjoint(FEEDFORWARD_NORMS) else SANDWICH_PARTS

    def place(self, name: str) -> Place:
        """The part a parameter belongs to and the index of its block; outside blocks the layer and None."""
        path, rest = self._cut(name)
        child = rest.partition(".")[0]
        if path in self._block_index:
            return _lookup(rest, self._parts) or child, self._block_index[path]
        layer = _lookup(rest, GLOBAL_LAYERS) if self.is_transformer else None
        return layer or without_wrapper(join(path, child)), None

    def component(self, name: str) -> str:
        """The line of a state table a parameter belongs to."""
        if self.is_transformer and len(self.stacks) == 1:
            part, index = self.place(name)
            return part if index is None else f"{part}.{index}"
        path, rest = self._cut(name)
        child, _, below = rest.partition(".")
        is_own_parameter = path in self._block_index and not below
        return without_wrapper(path if is_own_parameter else join(path, child))

    def _cut(self, name: str) -> tuple[str, str]:
        """Cut a name after its block, or after the deepest module that has a stack inside."""
        path, rest = "", name
        while path in self._around:
            head, _, below = rest.partition(".")
            longer = join(path, head)
            if not below or (longer not in self._around and longer not in self._block_index):
                break
            path, rest = longer, below
        return path, rest


def _leading_paths(path: str) -> set[str]:
    segments = path.split(".")
    return {".".join(segments[:length]) for length in range(1, len(segments) + 1)}


def _lookup(path: str, table: Mapping[str, str]) -> str | None:
    """Look up the longest leading path of at most three segments."""
    segments = path.split(".", 3)[:3]
    candidates = (".".join(segments[:length]) for length in range(len(segments), 0, -1))
    return next((table[candidate] for candidate in candidates if candidate in table), None)


def components(model: nn.Module) -> dict[str, list[str]]:
    """Group all parameter names of a model into the components a table or a plot shows.

    Args:
        model: Any module: a network, or a LightningModule around it.

    Returns:
        Component to canonical parameter names, in model order. Each parameter comes once; a tied weight under
        its first name, so a tied `lm_head` is part of `wte`. A model with one stack of transformer blocks has
        `wte`, `attn.0`, `mlp.0`, `ln_f`, ...; others have a component for each module right inside a block
        (`layers.0.conv1`) and for each module next to the blocks (`head`).
    """
    anatomy = _Anatomy(model)
    grouped: dict[str, list[str]] = {}
    for name in canonical_parameters(model):
        grouped.setdefault(anatomy.component(name), []).append(name)
    return grouped


def parameters_of_layer(model: nn.Module, layer: str) -> dict[str, nn.Parameter]:
    """The parameters of one layer, by the short name every transformer shares.

    Args:
        model: Any module with one stack of blocks: a network, or a LightningModule around it.
        layer: `attn.N`, `mlp.N`, `ln_1.N`, `ln_2.N`, the whole block as `block.N` (or as the model calls it:
            `h.N`, `layers.N`), `wte`, `wpe`, `ln_f`, `lm_head`, or another component of `components(model)`,
            such as the `classifier_head` of a GPT. N counts from 0.

    Returns:
        Canonical name to parameter, in model order. A tied weight has its first name: where `lm_head` is tied
        to `wte`, both layers are one and the same parameter.

    Raises:
        ValueError: If the model has no such layer; the message says which it has.
    """
    if not isinstance(layer, str):
        raise TypeError(f"A layer is a string such as 'attn.2', not {layer!r} ({type(layer).__name__}).")
    anatomy = _Anatomy(model)
    places = {name: anatomy.place(name) for name, _ in named_aliases(model)}
    part, index = _parse_layer(layer, anatomy, set(places.values()))
    chosen = {
        id(parameter)
        for name, parameter in named_aliases(model)
        if places[name] == (part, index) or (part == WHOLE_BLOCK and places[name][1] == index)
    }
    every = canonical_parameters(model)
    return {name: parameter for name, parameter in every.items() if id(parameter) in chosen}


def expand_layers(model: nn.Module, layers: str) -> list[str]:
    """Write out `attn.0-3` or `attn.*` as single layers; any other name comes back as it is.

    Args:
        model: Any module with one stack of blocks.
        layers: A layer name, where the index may be a range, both ends included, or `*` for all blocks.
    """
    part, _, index = layers.rpartition(".")
    if index == "*":
        return [f"{part}.{block}" for block in range(_only_stack(layers, _Anatomy(model)).num_blocks)]
    span = re.fullmatch(r"(\d+)-(\d+)", index)
    if span is None:
        return [layers]
    first, last = int(span[1]), int(span[2])
    if first > last:
        raise ValueError(f"'{layers}' runs backwards: write '{part}.{last}-{first}'.")
    return [f"{part}.{block}" for block in range(first, last + 1)]


def _parse_layer(layer: str, anatomy: _Anatomy, places: set[Place]) -> Place:
    if (layer, None) in places:
        return layer, None
    part, _, text = layer.rpartition(".")
    parts = {found for found, index in places if index is not None}
    if not part or not (part in parts or _is_integer(text) or part in BLOCK_PARTS.values()):
        raise ValueError(_unknown_layer(layer, anatomy, places))
    stack = _only_stack(layer, anatomy)
    if part in (WHOLE_BLOCK, stack.path.rpartition(".")[2]):
        part = WHOLE_BLOCK
    elif part not in parts:
        known = [*sorted(parts), WHOLE_BLOCK]
        raise ValueError(
            f"Unknown component '{part}' in '{layer}': the blocks of {anatomy.model_class} have "
            f"{', '.join(known)}. Closest: '{closest_names(part, known, 1)[0]}'."
        )
    index = _parse_index(layer, part, text, stack.num_blocks)
    if part != WHOLE_BLOCK and (part, index) not in places:
        there = sorted(found for found, block in places if block == index)
        raise ValueError(f"Block {index} has no '{part}': it has {', '.join(there)}.")
    return part, index


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _only_stack(layer: str, anatomy: _Anatomy) -> BlockStack:
    if not anatomy.stacks:
        raise ValueError(
            f"'{layer}' names a layer inside a block, but {anatomy.model_class} has no blocks: no "
            f"nn.ModuleList or nn.Sequential of modules of one class. Select by parameter name instead."
        )
    if len(anatomy.stacks) > 1:
        stacks = ", ".join(f"'{stack.path}' with {stack.num_blocks}" for stack in anatomy.stacks)
        raise ValueError(
            f"'{layer}' is ambiguous: {anatomy.model_class} has {len(anatomy.stacks)} stacks of blocks "
            f"({stacks}). Select by name instead, such as all that starts with '{anatomy.stacks[0].path}.0.'."
        )
    return anatomy.stacks[0]


def _parse_index(layer: str, part: str, text: str, num_blocks: int) -> int:
    choice = f"{part}.0 to {part}.{num_blocks - 1}"
    if not _is_integer(text):
        raise ValueError(f"Layer index '{text}' in '{layer}' is not an integer: write {choice}.")
    if int(text) < 0:
        raise ValueError(f"Layer index {text} in '{layer}' is negative, layers count from 0: write {choice}.")
    if int(text) >= num_blocks:
        raise ValueError(f"Layer index {text} out of range: the model has {num_blocks} layers, {choice}.")
    return int(text)


def _unknown_layer(layer: str, anatomy: _Anatomy, places: set[Place]) -> str:
    if layer == "wpe" and anatomy.is_transformer:
        return (
            f"{anatomy.model_class} has no 'wpe': its positions are rotary or relative, without a table of "
            f"embeddings that could be selected."
        )
    outside = sorted(found for found, index in places if index is None)
    inside = [f"{part}.N" for part in sorted({found for found, index in places if index is not None})]
    known = [*outside, *inside, f"{WHOLE_BLOCK}.N"] if inside else outside
    close = ", ".join(f"'{name}'" for name in closest_names(layer, known, 3))
    return f"Unknown layer '{layer}': {anatomy.model_class} has {', '.join(known)}. Closest: {close}."
