"""Freezes and thaws the first or the last layers of any model: a layer is a block of its trunk."""

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.engine.effects.lost_gain import lost_share
from lighter_freezers.layers.changes import checked_count, freeze, thaw_layers
from lighter_freezers.selection.anatomy import Anatomy, anatomy_of
from lighter_freezers.selection.names import canonical_parameters

__all__ = [
    "freeze_except_last_n",
    "freeze_first_n_layers",
    "freeze_last_n_layers",
    "unfreeze_first_n_layers",
    "unfreeze_last_n_layers",
]


def freeze_first_n_layers(model: nn.Module, n: int) -> int:
    """Freeze the first n layers, those next to the input.

    Frozen layers at the input need no backward pass as long as nothing below them trains: call
    `freeze_embeddings` too. A warning states the loss where the embeddings still train.

    Args:
        model: Any module with blocks. The layers of an encoder come before those of its decoder.
        n: Number of layers; a number above that of the model means all, with a warning.

    Returns:
        The number of elements that trained until now.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    anatomy = anatomy_of(model)
    blocks = anatomy.blocks_for("freeze_first_n_layers")
    n = checked_count(n, len(blocks), "freeze_first_n_layers")
    frozen = freeze(model, sum(blocks[:n], ()), f"The first {n} of {len(blocks)} layers")
    _warn_of_lost_gain(model, anatomy, n)
    return frozen


def freeze_last_n_layers(model: nn.Module, n: int) -> int:
    """Freeze the last n layers, those next to the head. The backward pass still goes through them.

    Args:
        model: Any module with blocks. The layers of a decoder come after those of its encoder.
        n: Number of layers; a number above that of the model means all, with a warning.

    Returns:
        The number of elements that trained until now.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    blocks = anatomy_of(model).blocks_for("freeze_last_n_layers")
    n = checked_count(n, len(blocks), "freeze_last_n_layers")
    return freeze(model, sum(blocks[len(blocks) - n :], ()), f"The last {n} of {len(blocks)} layers")


def freeze_except_last_n(model: nn.Module, n: int) -> int:
    """Train the last n layers, the norm after them and the head, and freeze everything else.

    Layers among the last n that were frozen before are thawed; in layers with LoRA, only the factors are. An
    embedding that shares its weight with the head trains with the head.

    Args:
        model: Any module with blocks.
        n: Number of layers that train; 0 for the head alone. If n exceeds the number of layers in the model,
            all of them train, with a warning.

    Returns:
        The number of elements that were trainable before the call and are now frozen.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    anatomy = anatomy_of(model)
    num_layers = len(anatomy.blocks_for("freeze_except_last_n"))
    n = checked_count(n, num_layers, "freeze_except_last_n")
    kept = [*anatomy.top(n), *anatomy.head_weights]
    rest = canonical_parameters(model).keys() - set(kept)
    frozen = freeze(model, rest, f"All but the last {n} of {num_layers} layers and the head")
    thaw_layers(model, _layers_of(anatomy, n), f"The last {n} of {num_layers} layers and the head")
    return frozen


def unfreeze_first_n_layers(model: nn.Module, n: int) -> int:
    """Unfreeze the first n layers; in layers with LoRA, only the factors.

    Args:
        model: Any module with blocks.
        n: Number of layers; if it exceeds the number in the model, all are unfrozen, with a warning.

    Returns:
        The number of elements that became trainable. Parameters held by a running Freezer train once it
        releases them.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    blocks = anatomy_of(model).blocks_for("unfreeze_first_n_layers")
    n = checked_count(n, len(blocks), "unfreeze_first_n_layers")
    return thaw_layers(model, blocks[:n], f"The first {n} of {len(blocks)} layers")


def unfreeze_last_n_layers(model: nn.Module, n: int) -> int:
    """Unfreeze the last n layers; in layers with LoRA, only the factors.

    Args:
        model: Any module with blocks.
        n: Number of layers; if it exceeds the number in the model, all are unfrozen, with a warning.

    Returns:
        The number of elements that became trainable. Parameters held by a running Freezer train once it
        releases them.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    blocks = anatomy_of(model).blocks_for("unfreeze_last_n_layers")
    n = checked_count(n, len(blocks), "unfreeze_last_n_layers")
    return thaw_layers(model, blocks[len(blocks) - n :], f"The last {n} of {len(blocks)} layers")


def _layers_of(anatomy: Anatomy, n: int) -> list[tuple[str, ...]]:
    """The last blocks one by one, then their norm, then the head."""
    blocks = anatomy.blocks[len(anatomy.blocks) - n :]
    inside = {name for block in blocks for name in block}
    norms = tuple(name for name in anatomy.top(n) if name not in inside)
    return [*blocks, norms, anatomy.head_weights]


def _warn_of_lost_gain(model: nn.Module, anatomy: Anatomy, n: int) -> None:
    """Warn what a frozen prefix costs while the embeddings below it train."""
    parameters = canonical_parameters(model)
    training = [name for name in anatomy.embeddings if parameters[name].requires_grad]
    if not n or not training:
        return
    lost = sum(lost_share(anatomy, stack, parameters) for stack in anatomy.stacks)
    tie = " The head shares their weight: it is frozen with them." if anatomy.is_head_tied else ""
    log.warning(
        "'%s' still trains below the first %d layers: the gradient that goes through them for it takes about "
        "%.0f %% of a step. freeze_embeddings(model) saves that.%s",
        *(training[0], n, 100 * lost, tie),
    )
