"""Norms of gradients by kind of layer and by block: planned once, measured with one read of the device.

Plain torch; `callbacks/gradient_norm_monitor.py` decides when to measure and where the numbers go.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lighter_freezers.arguments import checked
from lighter_freezers.reports.timeline import rows_of
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.element_counts import is_empty
from lighter_freezers.selection.layer_names import components
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["GradientNorms", "NormPlan", "measure_gradient_norms"]

GROUPS = ("embed", "attention", "mlp", "lm_head")  # of a model with one stack of transformer blocks
KIND_OF_PART: Mapping[str, str] = {"attn": "attention", "mlp": "mlp"}
FULL_PRECISION = (torch.float32, torch.float64)


@dataclass(frozen=True)
class GradientNorms:
    """L2 norms of gradients at one moment. None where nothing had a gradient.

    Attributes:
        groups: Kind of layer -> norm; without the total.
        layers: `layer_0_attention`, `layer_0_mlp`, ... -> norm.
        total: The norm of all gradients together.
        extras: Scalars that were read with them.
    """

    groups: Mapping[str, float | None]
    layers: Mapping[str, float | None]
    total: float | None
    extras: tuple[float, ...] = ()

    def unscaled(self) -> "GradientNorms":
        """The norms divided by the last of the extras, which is removed."""
        *extras, scale = self.extras

        def divided(norms: Mapping[str, float | None]) -> dict[str, float | None]:
            return {name: None if norm is None else norm / scale for name, norm in norms.items()}

        total = None if self.total is None else self.total / scale
        return GradientNorms(divided(self.groups), divided(self.layers), total, tuple(extras))

    def metrics(self, per_layer: bool) -> dict[str, float]:
        """The norms that exist, by the keys under which loggers show them; those of many groups by blocks."""
        rows = rows_of(list(self.groups)).items()
        named = {row: _together([self.groups[name] for name in members]) for row, members in rows}
        named["total"] = self.total
        if per_layer:
            named |= {_dotted(column): norm for column, norm in self.layers.items()}
        return {f"gradient_norm/{name}": norm for name, norm in named.items() if norm is not None}


def _together(norms: Sequence[float | None]) -> float | None:
    """The norm of all of them, None where there is none; one alone is not rounded."""
    known = [norm for norm in norms if norm is not None]
    return (known[0] if len(known) == 1 else math.hypot(*known)) if known else None


def _dotted(column: str) -> str:
    """`attention.3` for `layer_3_attention`: sorted together in TensorBoard, and like the names of layers."""
    _, block, kind = column.split("_")
    return f"{kind}.{block}"


@dataclass(frozen=True)
class _Cell:
    """An entry of the result, in which squares of norms are summed, besides the total."""

    group: str | None
    layer: str | None = None


class NormPlan:
    """Which parameter belongs to which norm, looked up once per model.

    Args:
        model: Any module. A tensor with several names counts once, under its first. Make a new plan when
            parameters are replaced, as by a change of LoRA rank.
    """

    def __init__(self, model: nn.Module) -> None:
        self._cells, cell_of = _cells(model)
        parameters = {name: p for name, p in canonical_parameters(model).items() if not is_empty(p)}
        members = [(parameter, cell_of[name]) for name, parameter in parameters.items()]
        members.sort(key=lambda member: _place(member[0]))  # one pass per device, sharded or not
        self._parameters = [parameter for parameter, _ in members]
        self._all_cells = tuple(cell for _, cell in members)
        self._cell_of = {id(parameter): cell for parameter, cell in members}
        self._is_mixed = len(set(map(_place, self._parameters))) > 1
        self._has_sparse = any(getattr(module, "sparse", False) for module in model.modules())
        is_half = any(parameter.dtype not in FULL_PRECISION for parameter in self._parameters)
        self._dtype = torch.float32 if is_half else None  # bfloat16 would round a norm to three digits
        self.is_sharded = any(map(_is_sharded, self._parameters))
        self._can_clip = not (self._is_mixed or self._has_sparse or is_half or self.is_sharded)
        self._sorted: tuple[int, ...] = ()  # the cells that `_positions` is for
        self._positions: list[tuple[_Cell, list[int]]] = []
        self.groups = tuple(dict.fromkeys(cell.group for cell in self._cells if cell.group is not None))
        self.layers = tuple(cell.layer for cell in self._cells if cell.layer is not None)

    @torch.no_grad()
    def measure(self, extras: Sequence[Tensor] = ()) -> GradientNorms:
        """Measure the current gradients. If `is_sharded`, all ranks have to call this.

        Args:
            extras: Scalars to read with them, on the device of the gradients.
        """
        grads, cells = self._present()
        if not grads:
            norms = torch.stack(list(extras)) if extras else torch.empty(0)
        elif self._is_mixed:
            parts = [self._norms(list(run)) for _, run in groupby(grads, key=_place)]
            device = extras[0].device if extras else parts[0].device
            norms = torch.cat([*(part.to(device) for part in parts), *(extra[None] for extra in extras)])
        else:
            norms = self._norms(grads, extras)
        return self._sum_up(cells, norms.tolist())

    @torch.no_grad()
    def clip(
        self, parameters: Iterable[Parameter], max_norm: float, extras: Sequence[Tensor] = ()
    ) -> GradientNorms | None:
        """Do what `torch.nn.utils.clip_grad_norm_` does, to the bit, and return the norms before it.

        Args:
            parameters: What to clip, such as all parameters of an optimizer.
            max_norm: The largest allowed total norm.
            extras: As in `measure`.

        Returns:
            None, without any change, where one pass cannot do both: parameters outside `parameters` have
            gradients, or these are of half precision, sharded, sparse or on several devices.
        """
        chosen = [(p, grad) for p in parameters if (grad := p.grad) is not None]
        cells = tuple(self._cell_of.get(id(parameter), -1) for parameter, _ in chosen)
        if not chosen or not self._can_clip or -1 in cells or len(self._present()[0]) != len(chosen):
            return None
        norms = torch.stack([*torch._foreach_norm([grad for _, grad in chosen], 2.0), *extras])
        total = torch.linalg.vector_norm(norms[: len(chosen)] if extras else norms)
        torch.nn.utils.clip_grads_with_norm_([parameter for parameter, _ in chosen], max_norm, total)
        return self._sum_up(cells, norms.tolist())

    def _present(self) -> tuple[list[Tensor], tuple[int, ...]]:
        """The existing gradients, and the cell of each."""
        grads = [parameter.grad for parameter in self._parameters]
        found = [grad for grad in grads if grad is not None]
        if len(found) == len(grads):
            return found, self._all_cells
        pairs = zip(grads, self._all_cells, strict=True)
        return found, tuple(cell for grad, cell in pairs if grad is not None)

    def _norms(self, grads: Sequence[Tensor], extras: Sequence[Tensor] = ()) -> Tensor:
        """The norm of each tensor of one device, and the extras after them, in one tensor."""
        if self._has_sparse:
            grads = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
        norms: Sequence[Tensor] = torch._foreach_norm(list(grads), 2.0, dtype=self._dtype)
        if _is_sharded(norms[0]):
            stacked: Any = torch.stack(list(norms))  # a DTensor, for mypy a Tensor
            norms = stacked.full_tensor().unbind()
        return torch.stack([*norms, *extras])

    def _sum_up(self, cells: tuple[int, ...], values: Sequence[float]) -> GradientNorms:
        """Combine the norms of tensors, on the host and in double precision."""
        if cells != self._sorted:  # other parameters have gradients than at the last measurement
            self._sorted, self._positions = cells, self._positions_of(cells)
        by_group: dict[str | None, list[float]] = {}
        layers: dict[str, float | None] = dict.fromkeys(self.layers)
        for cell, positions in self._positions:
            norm = math.hypot(*map(values.__getitem__, positions))
            by_group.setdefault(cell.group, []).append(norm)
            if cell.layer is not None:
                layers[cell.layer] = norm
        groups = {group: math.hypot(*parts) for group, parts in by_group.items()}
        total = math.hypot(*groups.values()) if groups else None
        own = {group: groups.get(group) for group in self.groups}
        return GradientNorms(own, layers, total, tuple(values[len(cells) :]))

    def _positions_of(self, cells: tuple[int, ...]) -> list[tuple[_Cell, list[int]]]:
        """The cells that have a norm, and where the norms in each stand."""
        positions: dict[int, list[int]] = {}
        for position, cell in enumerate(cells):
            positions.setdefault(cell, []).append(position)
        return [(self._cells[cell], own) for cell, own in positions.items()]


@checked
def measure_gradient_norms(model: nn.Module) -> dict[str, object]:
    """Measure the L2 norms of a model's gradients, by kind of layer and by block, with one device read.

    Args:
        model: Any module whose `backward` has run.

    Returns:
        `embed_norm`, `attention_norm`, `mlp_norm`, `lm_head_norm`, `total_norm` and `layer_data`, which is
        `{"layer_0": {"attention": norm, "mlp": norm}, ...}`. None where nothing has a gradient. The norm
        layers in and after the blocks count in the total only. A head that is tied to the embedding counts
        once, as `embed`; a classifier and its pooler count as `lm_head`. A model without exactly one stack of
        transformer blocks has one `<component>_norm` for each of its components instead, and no `layer_data`.

    Raises:
        RuntimeError: No parameter has a gradient.
    """
    norms = NormPlan(model).measure()
    if norms.total is None:
        raise RuntimeError(
            f"No parameter of {type(model).__name__} has a gradient. Call this between loss.backward() and "
            "optimizer.zero_grad()."
        )
    layer_data: dict[str, dict[str, float | None]] = {}
    for column, norm in norms.layers.items():
        layer, _, part = column.rpartition("_")
        layer_data.setdefault(layer, {})[part] = norm
    groups = {f"{group}_norm": norm for group, norm in norms.groups.items()}
    return {**groups, "total_norm": norms.total, "layer_data": layer_data}


def _cells(model: nn.Module) -> tuple[list[_Cell], dict[str, int]]:
    """The cells in the order of the columns, and the index of the cell of each parameter name."""
    grouped, anatomy = components(model), anatomy_of(model)
    if len(anatomy.stacks) != 1 or "attn.0" not in grouped:
        cells = [_Cell(component) for component in grouped]
        return cells, {name: index for index, names in enumerate(grouped.values()) for name in names}
    blocks = [
        _Cell(kind, f"layer_{block}_{kind}")
        for block in range(len(anatomy.blocks))
        for kind in KIND_OF_PART.values()
    ]
    cells = [*map(_Cell, GROUPS), *blocks, _Cell(None)]
    cell_of = {name: _cell(component) for component, names in grouped.items() for name in names}
    cell_of |= dict.fromkeys(anatomy.embeddings, _Cell("embed")) | dict.fromkeys(
        anatomy.heads, _Cell("lm_head")
    )
    index_of = {cell: index for index, cell in enumerate(cells)}
    return cells, {name: index_of[cell] for name, cell in cell_of.items()}


def _cell(component: str) -> _Cell:
    """`attn.3` counts as attention and in block 3; other parts, such as `ln_1.3`, in the total only."""
    part, _, block = component.rpartition(".")
    kind = KIND_OF_PART.get(part)
    return _Cell(kind, f"layer_{block}_{kind}") if kind else _Cell(None)


def _place(tensor: Tensor) -> tuple[str, bool]:
    """What tensors must have in common to be measured in one call."""
    return str(tensor.device), _is_sharded(tensor)


def _is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, without importing that class."""
    return hasattr(tensor, "full_tensor")
