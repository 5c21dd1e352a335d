"""One table of all operations: how the value of each is read and checked, and what it does to a model.

When an operation is done is decided elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import nn
from torch.optim import Optimizer

from lighter_freezers import arguments
from lighter_freezers.engine.effects.learning_rate_curves import RateCurves
from lighter_freezers.layers.operations.layer_holds import LayerHolds, parameters_of_layers

if TYPE_CHECKING:
    from lighter_freezers.lora.optimizer_state import NewComponents
    from lighter_freezers.lora.rank_change import OnZero

__all__ = ["KINDS", "Effect", "Kind", "OperationContext", "Value"]

Value: TypeAlias = str | int | float | tuple[str, int] | tuple[str, int, str] | None


@dataclass(frozen=True)
class Effect:
    """The effect of an operation.

    Attributes:
        text: The effect in words, for the log.
        ranks: LoRA rank of the components that got another one.
        is_reshaped: Whether parameters have other shapes than before.
    """

    text: str
    ranks: Mapping[str, int] = field(default_factory=dict)
    is_reshaped: bool = False


@dataclass
class OperationContext:
    """What operations need in one fit.

    Attributes:
        model: The model.
        holds: What operations hold frozen.
        optimizers: Those that train the model.
        curves: The learning rates; None where no operation changes them.
        new_components: LoRA components that wait for their first gradient; None where no operation concerns
            LoRA.
        free_parameters: Call it before changing the shape of a parameter.
    """

    model: nn.Module
    holds: LayerHolds
    optimizers: Sequence[Optimizer]
    curves: RateCurves | None
    new_components: "NewComponents | None"
    free_parameters: Callable[[], None]


_Read: TypeAlias = Any  # the value that `read` gave: each kind has its own


@dataclass(frozen=True)
class Kind:
    """What operations of one name have in common.

    Attributes:
        about: What they change.
        read: Checks a value as it stands in a file; its first argument is what errors call it.
        perform: Does it: context, value, and the operation's place in the list, which seeds random numbers.
        check: Raises if a value is impossible for a model.
        target: The layers and the rank in a value, where they set one.
        needs_schedule: Whether they need an LR scheduler.
    """

    about: Literal["freezing", "thawing", "lora", "rates"]
    read: Callable[[str, object], Value]
    perform: Callable[[OperationContext, _Read, str], Effect]
    check: Callable[[nn.Module, _Read], object] | None = None
    target: Callable[[_Read], tuple[str, int]] | None = None
    needs_schedule: bool = False


def _layer(argument: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{argument} must be a layer such as 'attn.2', 'mlp.*' or 'wte'. Got {value!r}.")
    return value


def _rank(argument: str, value: object) -> int:
    rank = arguments.count(argument, value)
    if rank is None:
        raise TypeError(f"{argument} must be a LoRA rank such as 8, or 0 for none. Got None.")
    return rank


def _layer_and_rank(argument: str, value: object) -> tuple[str, int] | tuple[str, int, str]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) not in (2, 3):
        raise TypeError(
            f"{argument} must be [layer, rank] such as ['attn.3', 16], or ['wte', 0, 'drop']. Got {value!r}."
        )
    layer, rank = _layer(f"{argument}[0]", value[0]), _rank(f"{argument}[1]", value[1])
    if len(value) == 2:
        return layer, rank
    if rank:
        raise ValueError(f"{argument}[2] says what rank 0 means, but the rank is {rank}. Remove it.")
    return layer, rank, arguments.choice(f"{argument}[2]", value[2], ("merge", "drop"))


def _layer_or_nothing(argument: str, value: object) -> str | None:
    return None if value is None else _layer(argument, value)


def _nothing(argument: str, value: object) -> None:
    if value is not None:
        raise TypeError(f"{argument} must be null: it takes no value. Got {value!r}.")


def _check_rank(model: nn.Module, layer: str, rank: int, on_zero: "OnZero" = "merge") -> None:
    from lighter_freezers.lora.merging import WAY_OUT
    from lighter_freezers.lora.set_rank import check_layer_lora_rank

    try:
        check_layer_lora_rank(model, layer, rank, on_zero=on_zero)
    except (ValueError, RuntimeError) as error:
        way_out = f"{{name: set_layer_lora_rank, value: [{layer}, 0, drop]}}"
        raise type(error)(str(error).replace(WAY_OUT, way_out)) from None


def _check_merge(model: nn.Module, layer: str | None) -> None:
    if layer is None:
        return
    from lighter_freezers.lora.merging import check_merge
    from lighter_freezers.lora.sites import find_lora_sites

    named = parameters_of_layers(model, layer)
    inside = {id(parameter) for parameter in named.values()}
    for site in find_lora_sites(model).values():
        if id(site.factors.parameters[0]) in inside:
            check_merge(site.factors, model)


def _set_rank(
    context: OperationContext, layer: str, rank: int, on_zero: "OnZero" = "merge", *, seed: str
) -> Effect:
    from lighter_freezers.lora.rank_notes import notes_of
    from lighter_freezers.lora.set_rank import set_layer_lora_rank

    _check_rank(context.model, layer, rank, on_zero)
    context.free_parameters()
    changes = set_layer_lora_rank(
        context.model,
        layer,
        rank,
        on_zero=on_zero,
        optimizers=context.optimizers,
        new_components=context.new_components,
        seed=seed,
    )
    if all(change.rank_before == change.rank_after for _, change in changes):
        return Effect(f"no effect, the rank was {rank} already")
    ranks = {site.layer: change.rank_after for site, change in changes}
    return Effect("; ".join(notes_of(changes, [])), ranks, is_reshaped=True)


def _merge(context: OperationContext, layer: str | None, seed: str) -> Effect:
    from lighter_freezers.lora.relora import merge_lora_weights

    layers = None if layer is None else [layer]
    merged = merge_lora_weights(context.model, layers, optimizers=context.optimizers, seed=seed)
    return Effect(f"merged {', '.join(merged)}" if merged else "no effect, there is no LoRA to merge")


def _restart(context: OperationContext, _: None, __: str) -> Effect:
    curves = context.curves
    assert curves is not None
    before = _span(curves.rates)
    curves.restart()
    return Effect(f"learning rate {before} -> {_span(curves.rates)}, the schedule restarts")


def _span(rates: Sequence[float]) -> str:
    low, high = min(rates), max(rates)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _sets_rank(read: Callable[[str, object], Value], target: Callable[[_Read], _Read]) -> Kind:
    return Kind(
        "lora",
        read,
        perform=lambda context, value, seed: _set_rank(context, *target(value), seed=seed),
        check=lambda model, value: _check_rank(model, *target(value)),
        target=lambda value: target(value)[:2],
    )


def _changes_layers(
    about: Literal["freezing", "thawing"], change: Callable[[LayerHolds, nn.Module, str], str]
) -> Kind:
    def perform(context: OperationContext, layers: str, _: str) -> Effect:
        return Effect(change(context.holds, context.model, layers))

    return Kind(about, _layer, perform, check=parameters_of_layers)


def _changes_height(change: Callable[[RateCurves, float], None]) -> Kind:
    def perform(context: OperationContext, value: float, _: str) -> Effect:
        curves = context.curves
        assert curves is not None
        before = _span(curves.heights)
        change(curves, value)
        in_force = f", now {_span(curves.rates)} of it" if curves.rates != curves.heights else ""
        return Effect(f"learning rate {before} -> {_span(curves.heights)}{in_force}")

    return Kind("rates", arguments.positive, perform)


KINDS: Mapping[str, Kind] = {
    "freeze_layer": _changes_layers("freezing", LayerHolds.freeze),
    "unfreeze_layer": _changes_layers("thawing", LayerHolds.unfreeze),
    "set_layer_lora_rank": _sets_rank(_layer_and_rank, lambda value: value),
    "set_attn_lora_rank": _sets_rank(_rank, lambda rank: ("attn.*", rank)),
    "set_embedding_lora_rank": _sets_rank(_rank, lambda rank: ("wte", rank)),
    "merge_lora_weights": Kind("lora", _layer_or_nothing, _merge, check=_check_merge),
    "set_lr": _changes_height(RateCurves.set_height),
    "scale_lr": _changes_height(RateCurves.scale),
    "reset_lr_schedule": Kind("rates", _nothing, _restart, needs_schedule=True),
}
