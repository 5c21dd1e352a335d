"""What the layers of a model are, with the addresses that rules call them by: to read and to copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import nn

from lighter_freezers.layers.said import Said, anatomy_said
from lighter_freezers.selection.anatomy import Anatomy, Stack, anatomy_of
from lighter_freezers.selection.anatomy.addresses import stack_names
from lighter_freezers.selection.anatomy.anatomy import anatomy_by_source
from lighter_freezers.selection.element_counts import size_of
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_parameters

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["describe_layers"]


def describe_layers(model: nn.Module, example: object = None, **said: Unpack[Said]) -> str:
    """Towers, blocks, embeddings, norms and heads of a model, with addresses, sizes, ties and doubts.

    Args:
        model: Any module.
        example: A batch, or a tuple or mapping of arguments. One forward pass then tells the order; where the
            source of the model says something else, both are shown.
        **said: `blocks`, `head` and `embeddings`, as for `anatomy_of`.
    """
    traced = anatomy_said(model, said) if example is None or said else anatomy_of(model, example=example)
    read = traced if said else anatomy_by_source(model)
    return "\n".join(_lines(model, traced, read))


def _lines(model: nn.Module, anatomy: Anatomy, read: Anatomy) -> Iterator[str]:
    parameters = canonical_parameters(model)
    sizes = {name: size_of(parameter) for name, parameter in parameters.items()}
    total, summary = sum(sizes.values()) or 1, NameSummary(list(parameters))

    def line(address: str, names: Iterable[str], note: str) -> str:
        number = sum(map(sizes.__getitem__, names))
        return f"{address:28}{number:>14,} {100 * number / total:6.2f} %  {note}"

    towers = ", ".join(filter(None, anatomy.towers))
    yield f"{anatomy.model_class}: {len(anatomy.blocks)} blocks" + (f", towers {towers}" if towers else "")
    yield f"{'layers:...':28}{'parameters':>14} {'share':>8}"
    if anatomy.embeddings:
        yield line("embeddings", anatomy.embeddings, summary.compress(anatomy.embeddings))
    first = Counter[str]()  # stages of one name count on, as the addresses do
    for stack, name in zip(anatomy.stacks, stack_names(anatomy), strict=True):
        yield from (line(*block) for block in _blocks(stack, name, first[name]))
        first[name] += len(stack.blocks)
    if anatomy.final_norms:
        yield line("(final norms)", anatomy.final_norms, summary.compress(anatomy.final_norms))
    if anatomy.head_weights:
        tie = f"; tied to {', '.join(anatomy.tied)}" if anatomy.tied else ""
        yield line("head", anatomy.head_weights, summary.compress(anatomy.head_weights) + tie)
    if anatomy.others:
        yield line("(no place of its own)", anatomy.others, summary.compress(anatomy.others))
    if anatomy.doubt:
        yield f"Uncertain, so no layers: {anatomy.doubt}. Say them: blocks: ['path.of.blocks.*', ...]"
    for what, one, other in _differences(anatomy, read):
        yield f"Uncertain: a forward pass runs {what} {one}, the source says {other}"


def _blocks(stack: Stack, name: str, first: int) -> Iterator[tuple[str, tuple[str, ...], str]]:
    prefix = f"{name}." if name else ""
    again = f", runs {stack.num_passes} times" if stack.num_passes > len(stack.blocks) else ""
    for index, (path, block) in enumerate(zip(stack.block_paths, stack.blocks, strict=True), first):
        yield f"{prefix}block.{index}", block, path + again


def _differences(traced: Anatomy, read: Anatomy) -> Iterator[tuple[str, object, object]]:
    for what in ("block_titles", "embeddings", "final_norms", "heads"):
        one, other = getattr(traced, what), getattr(read, what)
        if one != other:
            yield what.replace("_", " "), one, other
    if traced.blocks != read.blocks:
        yield "blocks", [s.block_paths for s in traced.stacks], [s.block_paths for s in read.stacks]
