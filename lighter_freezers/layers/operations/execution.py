"""What each operation does to a model, its optimizers and their schedules. When is decided elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import Parameter

from lighter_freezers.engine.effects.learning_rate_curves import RateCurves
from lighter_freezers.layers.operations.layer_holds import LayerHolds, adapters_of, parameters_of_layers
from lighter_freezers.layers.operations.parse import Operation

if TYPE_CHECKING:
    from lighter_freezers.lora.optimizer_state import NewComponents

__all__ = [
    "Effect",
    "OperationContext",
    "changes_ranks",
    "check_operations",
    "freezable",
    "lora_ranks",
    "new_components",
    "perform",
    "prepare_lora",
    "rate_curves",
    "restore_lora",
    "trainable_later",
]


@dataclass(frozen=True)
class Effect:
    """What an operation did.

    Attributes:
        text: In words.
        ranks: LoRA rank of the components that got another one.
        is_reshaped: Whether parameters have other shapes than before.
    """

    text: str
    ranks: Mapping[str, int] = field(default_factory=dict)
    is_reshaped: bool = False


@dataclass
class OperationContext:
    """What operations work with, in one fit.

    Attributes:
        model: The model.
        holds: What operations hold frozen.
        optimizers: Those that train the model.
        curves: The learning rates; None where no operation is about them.
        new_components: LoRA components that wait for their first gradient; None where no operation is about
            LoRA.
        free_parameters: To be called before a parameter gets another shape.
    """

    model: nn.Module
    holds: LayerHolds
    optimizers: Sequence[Any]
    curves: RateCurves | None
    new_components: "NewComponents | None"
    free_parameters: Callable[[], None]


def changes_ranks(operations: Iterable[Operation]) -> bool:
    """Whether one of them is about LoRA."""
    return any(operation.name in (*_RANKS, "merge_lora_weights") for operation in operations)


def rate_curves(
    operations: Iterable[Operation], optimizers: Sequence[Any], schedulers: Sequence[Any]
) -> RateCurves | None:
    """The learning rates as a fit begins; None where no operation is about them.

    Raises:
        RuntimeError: An operation could not be done with these optimizers and schedulers.
    """
    about_rates = [operation for operation in operations if operation.name in _RATES]
    if not about_rates:
        return None
    curves = RateCurves(optimizers, schedulers)
    for operation in about_rates:
        if operation.name == "reset_lr_schedule" and not curves.has_schedule:
            raise RuntimeError(
                f"{operation.argument} (reset_lr_schedule): there is no LR scheduler to begin anew. "
                "Return one from configure_optimizers, or remove the operation."
            )
    return curves


def new_components(operations: Iterable[Operation]) -> "NewComponents | None":
    """Keeps track of LoRA components without a gradient yet; None where no operation is about LoRA."""
    if not changes_ranks(operations):
        return None
    from lighter_freezers.lora.optimizer_state import NewComponents

    return NewComponents()


def restore_lora(model: nn.Module, waiting: "NewComponents", state: Mapping[str, Any]) -> None:
    """After a resume: hold the weights below adapters, and let new components go on waiting."""
    from lighter_freezers.lora.set_rank import hold_bases
    from lighter_freezers.lora.sites import find_lora_sites

    hold_bases(model)
    waiting.remember(state, find_lora_sites(model))


def lora_ranks(model: nn.Module) -> dict[str, int]:
    """LoRA rank of each component that has an adapter."""
    from lighter_freezers.lora.sites import find_lora_sites

    return {site.layer: site.factors.rank for site in find_lora_sites(model).values()}


def check_operations(operations: Iterable[Operation], model: nn.Module) -> None:
    """Check all that a model can tell, before anything is done.

    Raises:
        ValueError: A layer is unknown, or a rank impossible; the message says where, and what there is.
        RuntimeError: The rank of a layer cannot be changed, or not so.
    """
    for operation in operations:
        try:
            if operation.name in ("freeze_layer", "unfreeze_layer"):
                parameters_of_layers(model, str(operation.value))
            elif operation.name in _RANKS:
                _check_rank(model, *_RANKS[operation.name](operation.value))
            elif operation.name == "merge_lora_weights" and operation.value is not None:
                _check_merge(model, str(operation.value))
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{operation.argument} ({operation}): {error}") from None


def prepare_lora(operations: Iterable[Operation], model: nn.Module) -> None:
    """Give layers that get LoRA later empty factors now, and let checkpoints decide about ranks."""
    operations = list(operations)
    if not changes_ranks(operations):
        return
    from lighter_freezers.lora.attach import prepare_lora_layers
    from lighter_freezers.lora.restore import install_rank_restore

    layers = [layer for layer, rank in _targets(operations) if rank]
    prepare_lora_layers(model, list(dict.fromkeys(layers)))
    install_rank_restore(model)


def freezable(operations: Iterable[Operation], model: nn.Module) -> list[Parameter]:
    """What any of the operations may freeze."""
    layers = [str(operation.value) for operation in operations if operation.name == "freeze_layer"]
    return [p for layer in dict.fromkeys(layers) for p in parameters_of_layers(model, layer).values()]


def trainable_later(operations: Iterable[Operation], model: nn.Module) -> dict[str, Parameter]:
    """What any of the operations may let train, by name: an optimizer has to know it from the start."""
    operations = list(operations)
    layers = [str(operation.value) for operation in operations if operation.name == "unfreeze_layer"]
    named = {name: p for layer in layers for name, p in parameters_of_layers(model, layer).items()}
    adapters = adapters_of(model, in_use=False) if changes_ranks(operations) else {}
    return {name: p for name, p in {**named, **adapters}.items() if p.is_floating_point() or p.is_complex()}


def perform(operation: Operation, means: OperationContext) -> Effect:
    """Do one operation.

    Raises:
        RuntimeError: It cannot be done as things are; nothing is changed then.
        ValueError: The same.
    """
    match operation.name:
        case "freeze_layer":
            return Effect(means.holds.freeze(means.model, str(operation.value)))
        case "unfreeze_layer":
            return Effect(means.holds.unfreeze(means.model, str(operation.value)))
        case "merge_lora_weights":
            return _merge(means, operation.value, operation.argument)
        case "set_lr" | "scale_lr" | "reset_lr_schedule":
            assert means.curves is not None
            return _change_rates(operation, means.curves)
        case _:
            return _set_rank(means, *_RANKS[operation.name](operation.value), operation.argument)


_RATES = ("set_lr", "scale_lr", "reset_lr_schedule")
_RANKS: Mapping[str, Callable[[Any], tuple[str, int]]] = {  # name -> the layers and the rank of its value
    "set_layer_lora_rank": lambda value: value,
    "set_attn_lora_rank": lambda value: ("attn.*", value),
    "set_embedding_lora_rank": lambda value: ("wte", value),
}


def _targets(operations: Iterable[Operation]) -> Iterator[tuple[str, int]]:
    for operation in operations:
        if operation.name in _RANKS:
            yield _RANKS[operation.name](operation.value)


def _check_rank(model: nn.Module, layer: str, rank: int) -> None:
    from lighter_freezers.lora.set_rank import check_layer_lora_rank

    check_layer_lora_rank(model, layer, rank)


def _check_merge(model: nn.Module, layer: str) -> None:
    from lighter_freezers.lora.merging import check_merge
    from lighter_freezers.lora.sites import find_lora_sites

    named = parameters_of_layers(model, layer)
    inside = {id(parameter) for parameter in named.values()}
    for site in find_lora_sites(model).values():
        if id(site.factors.parameters[0]) in inside:
            check_merge(site.factors, model)


def _set_rank(means: OperationContext, layer: str, rank: int, seed: str) -> Effect:
    from lighter_freezers.lora.rank_notes import notes_of
    from lighter_freezers.lora.set_rank import check_layer_lora_rank, set_layer_lora_rank

    check_layer_lora_rank(means.model, layer, rank)
    means.free_parameters()
    changes = set_layer_lora_rank(
        means.model,
        layer,
        rank,
        optimizers=means.optimizers,
        new_components=means.new_components,
        seed=seed,
    )
    if all(change.rank_before == change.rank_after for _, change in changes):
        return Effect(f"no effect, the rank was {rank} already")
    ranks = {site.layer: change.rank_after for site, change in changes}
    return Effect("; ".join(notes_of(changes, [])), ranks, is_reshaped=True)


def _merge(means: OperationContext, layer: object, seed: str) -> Effect:
    from lighter_freezers.lora.relora import merge_lora_weights

    layers = None if layer is None else [str(layer)]
    merged = merge_lora_weights(means.model, layers, optimizers=means.optimizers, seed=seed)
    return Effect(f"merged {', '.join(merged)}" if merged else "no effect, there is no LoRA to merge")


def _change_rates(operation: Operation, curves: RateCurves) -> Effect:
    before = _span(curves.heights)
    if operation.name == "reset_lr_schedule":
        was = _span(curves.rates)
        curves.restart()
        return Effect(f"learning rate {was} -> {_span(curves.rates)}, the schedule begins anew")
    assert isinstance(operation.value, float)
    if operation.name == "set_lr":
        curves.set_height(operation.value)
    else:
        curves.scale(operation.value)
    in_force = f", now {_span(curves.rates)} of it" if curves.rates != curves.heights else ""
    return Effect(f"learning rate {before} -> {_span(curves.heights)}{in_force}")


def _span(rates: Sequence[float]) -> str:
    low, high = min(rates), max(rates)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
