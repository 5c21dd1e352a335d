"""Short layer names: `transformer.h.3.attn.c_attn.weight` is part of `attn.3`.

The only room that knows how GPT-2, Llama, OPT, GPT-NeoX, BERT and their relatives call their parts.
`select.py` decides which parameters a rule selects.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import nn

from lighter_freezers.selection.anatomy import Anatomy, Stack, anatomy_of
from lighter_freezers.selection.anatomy.addresses import home_of, prefix_of, stack_names, stacks_named
from lighter_freezers.selection.anatomy.rows import family_of, runs_beside
from lighter_freezers.selection.anatomy.tree import Node, leading, tree_of
from lighter_freezers.selection.block_indices import block_indices
from lighter_freezers.selection.names import (
    WRAPPERS,
    canonical_parameters,
    closest_names,
    join,
    named_aliases,
    without_wrapper,
)

__all__ = [
    "components",
    "expand_layers",
    "parameters_of_layer",
    "part_of",
]

WHOLE_BLOCK = "block"
_ROLES = ("head", "embeddings", "norms", "biases")
Place: TypeAlias = tuple[str, int | None]  # ("attn", 3) or, outside the blocks, ("wte", None)
FEEDFORWARD_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")

# Path inside a block -> part; the longest path decides. ln_1 belongs to the attention, ln_2 to the MLP.
BLOCK_PARTS: Mapping[str, str] = {
    **dict.fromkeys(("attn", "self_attn", "attention", "self_attention"), "attn"),
    **dict.fromkeys(("mlp", "ffn", "intermediate", "output", "fc1", "fc2"), "mlp"),
    **dict.fromkeys(("feed_forward", "shared_mlp", "block_sparse_moe", "mlp_block"), "mlp"),
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


class _Places:
    """The place of each parameter name of one model, from its anatomy."""

    def __init__(self, anatomy: Anatomy, among: str = "") -> None:
        """Take an anatomy; `among` names one of its stacks or towers, so that indices count in it alone."""
        self.anatomy = anatomy
        self.model_class = self.anatomy.model_class
        self.stacks = stacks_named(anatomy, among)
        every = [stack.block_paths for stack in self.stacks]
        self.blocks = [block for stack in self.stacks for block in stack.blocks]
        runs = [sum(every, ())] if _are_stages(self.stacks) else every
        self._block_index = {path: index for run in runs for index, path in enumerate(run)}
        self._around = {"", *WRAPPERS}.union(
            *(leading(path.rpartition(".")[0]) for path in self._block_index)
        )
        # a layer that PEFT adapted is one component, not its factors
        self._adapted = {
            path
            for stack in self.stacks
            for path, block in zip(stack.block_paths, stack.blocks, strict=True)
            if any(f"{path}.base_layer" in leading(name) for name in block)
        }
        self._parts = BLOCK_PARTS
        inside = [self._cut(name)[1] for stack in self.stacks for block in stack.blocks for name in block]
        self.is_transformer = any(_lookup(rest, BLOCK_PARTS) == "attn" for rest in inside)
        if not {rest.partition(".")[0] for rest in inside}.isdisjoint(FEEDFORWARD_NORMS):
            self._parts = SANDWICH_PARTS

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
        is_own_parameter = path in self._adapted or (path in self._block_index and not below)
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


def _are_stages(stacks: Sequence[Stack]) -> bool:
    """Whether stacks are stages of one trunk, as in a ResNet, so that blocks count through all of them."""
    return len({family_of(stack.path) for stack in stacks}) == 1


def _lookup(path: str, table: Mapping[str, str]) -> str | None:
    """Look up the longest leading path of at most three segments."""
    segments = path.split(".", 3)[:3]
    candidates = (".".join(segments[:length]) for length in range(len(segments), 0, -1))
    return next((table[candidate] for candidate in candidates if candidate in table), None)


def part_of(model: nn.Module) -> dict[str, str]:
    """Each parameter in a block, of any stack -> its part, such as `attn`, or its name inside the block."""
    of = _Places(anatomy_of(model))
    cut = {name: of._cut(name) for name in canonical_parameters(model)}
    inside = {name: rest for name, (path, rest) in cut.items() if path in of._block_index}
    return {name: _lookup(rest, of._parts) or rest for name, rest in inside.items()}


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
    anatomy = _Places(anatomy_of(model))
    grouped: dict[str, list[str]] = {}
    for name in canonical_parameters(model):
        grouped.setdefault(anatomy.component(name), []).append(name)
    return grouped


def parameters_of_layer(
    model: nn.Module, layer: str, anatomy: Anatomy | None = None
) -> dict[str, nn.Parameter]:
    """The parameters of a layer or of several, by the short names every transformer shares.

    Args:
        model: Any module: a network, or a LightningModule around it.
        layer: `attn.N`, `mlp.N`, `ln_1.N`, `ln_2.N` or the whole block as `block.N` (or as the model calls
            it: `h.N`, `layers.N`), behind the name of a stack or tower where there are several, as in
            `vision.block.3`;
            `head`, `embeddings`, `norms`, `biases`; `wte`, `wpe`, `ln_f`, `lm_head`, or another component of
            `components(model)`, such as the `classifier_head` of a GPT. N counts from 0, and may be what
            `block_indices` knows: `-1`, `0-5`, `:-4`, `0%-50%`, `*`.
        anatomy: Of this model, where the user says what its blocks are. None to find them.

    Returns:
        Canonical name to parameter, in model order. A tied weight has its first name: where `lm_head` is tied
        to `wte`, both layers are one and the same parameter. A block has all that the layer verbs take for
        it, such as the downsampling between two stages.

    Raises:
        ValueError: If the model has no such layer; the message says which it has.
    """
    if not isinstance(layer, str):
        raise TypeError(f"A layer is a string such as 'attn.2', not {layer!r} ({type(layer).__name__}).")
    found = _Found(model, anatomy_of(model) if anatomy is None else anatomy, layer)
    names = {name for each in found.expanded() for name in found.names_of(each)}
    return {name: parameter for name, parameter in found.parameters.items() if name in names}


def expand_layers(model: nn.Module, layers: str) -> list[str]:
    """Write out `attn.0-3`, `attn.-1`, `block.:-4`, `mlp.0%-50%` or `attn.*` as single layers.

    Args:
        model: Any module with blocks.
        layers: A layer name whose index may be what `block_indices` knows; any other comes back as it is.
    """
    if not _is_range(layers):
        return [layers]
    found = _Found(model, anatomy_of(model), layers)
    return [f"{found.prefix}{each}" for each in found.expanded()]


class _Found:
    """What an address means in one model."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, address: str) -> None:
        self._model, self._asked = model, address
        self.parameters = canonical_parameters(model)
        self._aliases = dict(named_aliases(model))
        places = _Places(anatomy)
        is_component = any(places.place(name) == (address, None) for name in self._aliases)
        tower = "" if is_component else prefix_of(anatomy, address)  # not `encoder.final_layer_norm`
        self.prefix = f"{tower}." if tower else ""
        self._rest = address[len(self.prefix) :]
        self._places = _Places(anatomy, tower) if tower else places
        self._place = {name: self._places.place(name) for name in self._aliases}

    def expanded(self) -> list[str]:
        """The single layers, without the name of their stack or tower."""
        part, _, index = self._rest.rpartition(".")
        if not _is_range(self._rest):
            return [self._rest]
        _refuse_ambiguous(self._asked, self.prefix, self._places)
        blocks = block_indices(index, len(self._places.blocks), self._asked)
        if blocks is None:
            return [self._rest]
        if index == "*":  # of a hybrid only some blocks have an attention
            having = {block for inner, block in self._place.values() if inner == part}
            blocks = [block for block in blocks if block in having] or blocks
        return [f"{part}.{block}" for block in blocks]

    def names_of(self, layer: str) -> set[str]:
        """First names of the parameters of a single layer."""
        places = set(self._place.values())
        is_role = layer in _ROLES and (layer, None) not in places  # what the model calls `head` comes first
        if is_role and (names := self._of_role(layer)):
            return names
        part, index = _parse_layer(layer, self._asked, self.prefix, self._places, places)
        if part == WHOLE_BLOCK and index is not None:
            return set(self._places.blocks[index])
        chosen = {id(p) for name, p in self._aliases.items() if self._place[name] == (part, index)}
        return {name for name, parameter in self.parameters.items() if id(parameter) in chosen}

    def _of_role(self, role: str) -> set[str]:
        anatomy, root = self._places.anatomy, tree_of(self._model)
        if role == "norms":
            names = {name for node in root.walk() if node.is_norm for name in node.names()}
        elif role == "biases":
            names = {name for name in self.parameters if name.rpartition(".")[2] == "bias"}
        else:
            names = set(anatomy.head_weights if role == "head" else anatomy.embeddings)
        if not self.prefix:
            return names
        home = home_of(anatomy, self._places.stacks)
        inside = {name for name in names if home and home in leading(name)}
        if role == "head":
            inside |= {name for name in anatomy.heads if self._is_fed_alone(root, name)}
        if not inside:
            elsewhere = f" Those of the model: '{role}'." if names else ""
            raise ValueError(
                f"'{self._asked}': the {self.prefix[:-1]} of {anatomy.model_class} has no {role} of its own."
                + elsewhere
            )
        return inside

    def _is_fed_alone(self, root: Node, name: str) -> bool:
        """Whether the source says that a head gets what this tower computes, and nothing of the others."""
        by_path = root.by_path
        head, own = by_path[name.rpartition(".")[0]], self._places.stacks
        others = [stack for stack in self._places.anatomy.stacks if stack not in own]
        beside = [runs_beside(root, by_path[stack.block_paths[-1]], head) for stack in (*others, *own)]
        return bool(others) and all(beside[: len(others)]) and not any(beside[len(others) :])


def _is_range(layer: str) -> bool:
    part, _, index = layer.rpartition(".")
    return bool(part and part.rpartition(".")[2].isidentifier() and re.search(r"[-:%*]", index))


def _parse_layer(layer: str, asked: str, prefix: str, anatomy: _Places, places: set[Place]) -> Place:
    if (layer, None) in places:
        return layer, None
    part, _, text = layer.rpartition(".")
    parts = {found for found, index in places if index is not None}
    if not part or not (part in parts or _is_integer(text) or part in BLOCK_PARTS.values()):
        raise ValueError(_unknown_layer(layer, anatomy, places))
    _refuse_ambiguous(asked, prefix, anatomy)
    if part in (WHOLE_BLOCK, anatomy.stacks[0].path.rpartition(".")[2]):
        part = WHOLE_BLOCK
    elif part not in parts:
        known = [*sorted(parts), WHOLE_BLOCK]
        raise ValueError(
            f"Unknown component '{part}' in '{layer}': the blocks of {anatomy.model_class} have "
            f"{', '.join(known)}. Closest: '{closest_names(part, known, 1)[0]}'."
        )
    index = _parse_index(layer, part, text, len(anatomy.blocks))
    if part != WHOLE_BLOCK and (part, index) not in places:
        there = ", ".join(sorted(found for found, block in places if block == index))
        raise ValueError(f"Block {index} has no '{part}': it has {there}.")
    return part, index


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _refuse_ambiguous(layer: str, prefix: str, anatomy: _Places) -> None:
    if not anatomy.stacks:
        why = anatomy.anatomy.doubt or "no modules in it repeat"
        raise ValueError(
            f"'{layer}' names a layer inside a block, but {anatomy.model_class} has no blocks: {why}. "
            "Select by parameter name instead."
        )
    if not _are_stages(anatomy.stacks):
        every = zip(anatomy.anatomy.stacks, stack_names(anatomy.anatomy), strict=True)
        names = list(dict.fromkeys(name for stack, name in every if stack in anatomy.stacks))
        stacks = ", ".join(f"'{stack.path}' with {len(stack.blocks)}" for stack in anatomy.stacks)
        raise ValueError(
            f"'{layer}' is ambiguous: {anatomy.model_class} has {len(anatomy.stacks)} stacks of blocks "
            f"({stacks}). Say which: "
            + ", ".join(f"'{name}.{layer.removeprefix(prefix)}'" for name in names)
            + "."
        )


def _parse_index(layer: str, part: str, text: str, num_blocks: int) -> int:
    choice = f"{part}.0 to {part}.{num_blocks - 1}"
    if not _is_integer(text):
        raise ValueError(f"Layer index '{text}' in '{layer}' is not an integer: write {choice}.")
    if int(text) < 0:
        raise ValueError(f"Layer index {text} in '{layer}' is out of range: write {choice}.")
    if int(text) >= num_blocks:
        raise ValueError(f"Layer index {text} out of range: the model has {num_blocks} layers, {choice}.")
    return int(text)


def _unknown_layer(layer: str, anatomy: _Places, places: set[Place]) -> str:
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
