"""Which layers train: as a list of plain values, and as a table for the terminal. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict

from torch import nn

from lighter_freezers.arguments import checked
from lighter_freezers.layers.said import Said, anatomy_said
from lighter_freezers.selection.anatomy import Anatomy, Stack, anatomy_of
from lighter_freezers.selection.element_counts import num_elements, num_trainable
from lighter_freezers.selection.names import canonical_parameters

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LayerStatus", "get_layer_status", "print_layer_status"]

State = Literal["FROZEN", "ACTIVE", "PARTIAL"]
_STYLES = {"FROZEN": "blue", "ACTIVE": "yellow", "PARTIAL": "cyan"}


class LayerStatus(TypedDict):
    """One layer.

    Attributes:
        index: Counted from 0, through all stacks of the model.
        name: Path of the block: "transformer.h.0".
        total_params: Elements of its parameters.
        trainable_params: How many of them train.
        frozen_params: How many of them are frozen.
        trainable: Whether any of them trains.
        frozen_pct: The frozen share, from 0 to 100.
        state: "ACTIVE" if all of it trains, "FROZEN" if nothing does, else "PARTIAL".
    """

    index: int
    name: str
    total_params: int
    trainable_params: int
    frozen_params: int
    trainable: bool
    frozen_pct: float
    state: State


@dataclass(frozen=True)
class _Count:
    total: int
    trainable: int

    @property
    def state(self) -> State:
        if not self.trainable:
            return "FROZEN"
        return "ACTIVE" if self.trainable == self.total else "PARTIAL"


@checked
def get_layer_status(model: nn.Module, blocks: Sequence[str] | None = None) -> list[LayerStatus]:
    """What trains, layer by layer, in forward order.

    Args:
        model: Any module; one without blocks has no layers. Layers that share their weights are one.
        blocks: Paths or patterns of the blocks, as for `anatomy_of`. None to find them.
    """
    anatomy = anatomy_of(model, blocks=blocks)
    counts = _Counts(model)
    paths = [path for stack in anatomy.stacks for path in stack.block_paths]
    return [
        _layer(index, path, counts.of(block))
        for index, (path, block) in enumerate(zip(paths, anatomy.blocks, strict=True))
    ]


def _layer(index: int, name: str, count: _Count) -> LayerStatus:
    frozen = count.total - count.trainable
    return LayerStatus(
        index=index,
        name=name,
        total_params=count.total,
        trainable_params=count.trainable,
        frozen_params=frozen,
        trainable=count.trainable > 0,
        frozen_pct=100 * frozen / count.total if count.total else 0.0,
        state=count.state,
    )


@checked
def print_layer_status(model: nn.Module, show_all: bool = False, **said: Unpack[Said]) -> None:
    """Print which layers train, with colours in a terminal and without in a file.

    ```text
    ========================================
    LAYER STATUS
    ========================================
    Layer 0-15:  FROZEN  (1.2B params)
    Layer 16-31: ACTIVE  (1.2B params)
    ----------------------------------------
    Embeddings:  FROZEN  (131.1M params)
    Final norm:  ACTIVE  (4.1K params)
    LM Head:     ACTIVE  (131.1M params)
    ========================================
    Total:       2.7B params, 50.6% trainable
    ========================================
    ```

    A layer that trains in part is PARTIAL. Encoder and decoder have their own lines, and so do the stages of
    a Swin or a ResNet. A weight that head and embeddings share counts once, for the embeddings.

    Args:
        model: Any module; for one without blocks the table says that it has none.
        show_all: Whether each layer has its own line, with the full number of parameters.
        **said: `blocks`, `head` and `embeddings`, as for `anatomy_of`; `tower` for the blocks of one tower.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for line in _lines(model, anatomy_said(model, said), show_all, said.get("tower")):
        text = Text(line)
        for state, style in _STYLES.items():
            text.highlight_words([state], style)
        console.print(text)


class _Counts:
    """Counts parameters of a model by name."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = canonical_parameters(model)

    def of(self, names: Iterable[str]) -> _Count:
        chosen = [self._parameters[name] for name in names]
        return _Count(num_elements(chosen), num_trainable(chosen))

    @property
    def total(self) -> _Count:
        return self.of(self._parameters)


class _Line(NamedTuple):
    label: str
    state: State
    size: str


def _lines(model: nn.Module, anatomy: Anatomy, show_all: bool, tower: str | None) -> Iterator[str]:
    counts = _Counts(model)
    named = {""} if tower is None else set(anatomy.named_towers(tower))
    stacks = [stack for stack in anatomy.stacks if tower is None or stack.tower in named]
    layers = [line for stack in stacks for line in _of_stack(stack, counts, show_all)]
    parts = list(_of_parts(anatomy, counts))
    column = max(12, *(len(line.label) for line in (*layers, *parts))) + 1 if layers or parts else 13
    double, single = "=" * 40, "-" * 40
    yield from (double, "LAYER STATUS", double)
    yield from _written(layers, column) if layers else (f"{anatomy.model_class} has no blocks",)
    yield single
    yield from _written(parts, column)
    total = counts.total
    share = f"{100 * total.trainable / total.total:.1f}" if total.total else "0.0"
    if share == "0.0" and total.trainable:  # of a large model the head alone rounds to nothing
        share = f"{_short(total.trainable)} = {100 * total.trainable / total.total:.1g}"
    yield from (double, f"{'Total:':{column}}{_short(total.total)} params, {share}% trainable", double)


def _written(lines: Iterable[_Line], column: int) -> Iterator[str]:
    return (f"{line.label:{column}}{line.state:8}({line.size})" for line in lines)


def _of_stack(stack: Stack, counts: _Counts, show_all: bool) -> Iterator[_Line]:
    """A line for each run of layers in the same state, or for each layer."""
    each = [counts.of(block) for block in stack.blocks]
    prefix = f"{stack.title}." if stack.title else "Layer "
    sharing = f", runs {stack.num_passes} times" if stack.num_passes > len(each) == 1 else ""
    for _, run in groupby(range(len(each)), key=lambda i: (i if show_all else 0, each[i].state)):
        layers = list(run)
        numbers = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
        total = sum(each[i].total for i in layers)
        size = f"{total:,}" if show_all else _short(total)
        yield _Line(f"{prefix}{numbers}:", each[layers[0]].state, f"{size} params{sharing}")


def _of_parts(anatomy: Anatomy, counts: _Counts) -> Iterator[_Line]:
    for label, names in (("Embeddings:", anatomy.embeddings), ("Final norm:", anatomy.final_norms)):
        if names:
            yield _Line(label, counts.of(names).state, f"{_short(counts.of(names).total)} params")
    if anatomy.head_weights:
        label = "LM Head:" if anatomy.predicts_tokens else "Head:"
        own = f"{_short(counts.of(anatomy.heads).total)} params" if anatomy.heads else ""
        tie = "tied to the embeddings" if anatomy.is_head_tied else ""
        size = ", ".join(filter(None, (own, tie)))
        yield _Line(label, counts.of(anatomy.head_weights).state, size)
    if anatomy.others:
        yield _Line(
            "Others:", counts.of(anatomy.others).state, f"{_short(counts.of(anatomy.others).total)} params"
        )


def _short(number: int) -> str:
    """1234 is 1.2K; M and B likewise."""
    for unit, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= unit:
            return f"{number / unit:.1f}{suffix}"
    return str(number)
