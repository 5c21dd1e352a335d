"""Prepares a model and its optimizers for a list of operations, at the start and throughout the run."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine.effects.learning_rate_curves import RateCurves
from lighter_freezers.engine.trainer_like import SavedState, SchedulerLike
from lighter_freezers.layers.changes import lora_factors
from lighter_freezers.layers.operations.layer_holds import parameters_of_layers
from lighter_freezers.layers.operations.parse import Operation

if TYPE_CHECKING:
    from lighter_freezers.lora.optimizer_state import NewComponents

__all__ = [
    "changes_ranks",
    "check_operations",
    "freezable",
    "lora_ranks",
    "new_components",
    "prepare_lora",
    "rate_curves",
    "restore_lora",
    "trainable_later",
]


def changes_ranks(operations: Iterable[Operation]) -> bool:
    """Whether any operation concerns LoRA."""
    return any(operation.kind.about == "lora" for operation in operations)


def rate_curves(
    operations: Iterable[Operation], optimizers: Sequence[Optimizer], schedulers: Sequence[SchedulerLike]
) -> RateCurves | None:
    """The learning rates when a fit starts; None where no operation changes them.

    Raises:
        RuntimeError: An operation could not be done with these optimizers and schedulers.
    """
    about_rates = [operation for operation in operations if operation.kind.about == "rates"]
    if not about_rates:
        return None
    curves = RateCurves(optimizers, schedulers)
    for operation in about_rates:
        if operation.kind.needs_schedule and not curves.has_schedule:
            raise RuntimeError(
                f"{operation.argument} ({operation.name}): there is no LR scheduler to restart. "
                "Return one from configure_optimizers, or remove the operation."
            )
    return curves


def new_components(operations: Iterable[Operation]) -> "NewComponents | None":
    """Tracks LoRA components that have had no gradient yet; None where no operation concerns LoRA."""
    if not changes_ranks(operations):
        return None
    from lighter_freezers.lora.optimizer_state import NewComponents

    return NewComponents()


def restore_lora(model: nn.Module, waiting: "NewComponents", state: SavedState) -> None:
    """After a resume: hold the base weights of adapters, and restore the waiting components."""
    from lighter_freezers.lora.set_rank import hold_bases
    from lighter_freezers.lora.sites import find_lora_sites

    hold_bases(model)
    waiting.remember(state, find_lora_sites(model))


def lora_ranks(model: nn.Module) -> dict[str, int]:
    """LoRA rank of each component that has an adapter."""
    from lighter_freezers.lora.sites import find_lora_sites

    return {site.layer: site.factors.rank for site in find_lora_sites(model).values()}


def check_operations(operations: Iterable[Operation], model: nn.Module) -> None:
    """Check all operations against the model, before any is done.

    Raises:
        ValueError: A layer is unknown, or a rank impossible; the message says where, and what there is.
        RuntimeError: The rank of a layer cannot be changed, or not in this way.
    """
    for operation in operations:
        try:
            if operation.kind.check is not None:
                operation.kind.check(model, operation.value)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{operation.argument} ({operation}): {error}") from None


def prepare_lora(operations: Iterable[Operation], model: nn.Module) -> None:
    """Give layers that get LoRA later empty factors now, and restore ranks from checkpoints."""
    operations = list(operations)
    if not changes_ranks(operations):
        return
    from lighter_freezers.lora.attach import prepare_lora_layers
    from lighter_freezers.lora.restore import install_rank_restore

    targets = [each.kind.target(each.value) for each in operations if each.kind.target is not None]
    layers = [layer for layer, rank in targets if rank]
    prepare_lora_layers(model, list(dict.fromkeys(layers)))
    install_rank_restore(model)


def freezable(operations: Iterable[Operation], model: nn.Module) -> list[Parameter]:
    """What any of the operations may freeze."""
    layers = [str(operation.value) for operation in operations if operation.kind.about == "freezing"]
    return [p for layer in dict.fromkeys(layers) for p in parameters_of_layers(model, layer).values()]


def trainable_later(operations: Iterable[Operation], model: nn.Module) -> dict[str, Parameter]:
    """What any of the operations may thaw, by name: it has to be in an optimizer from the start."""
    operations = list(operations)
    layers = [str(operation.value) for operation in operations if operation.kind.about == "thawing"]
    named = {name: p for layer in layers for name, p in parameters_of_layers(model, layer).items()}
    adapters = lora_factors(model, in_use=False) if changes_ranks(operations) else {}
    return {name: p for name, p in {**named, **adapters}.items() if p.is_floating_point() or p.is_complex()}
