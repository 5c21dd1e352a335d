"""Freezes and thaws the first or the last layers of any model: a layer is a block of its trunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine.effects.lost_gain import lost_share
from lighter_freezers.engine.effects.order_check import check_order
from lighter_freezers.layers.changes import checked_count, freeze, thaw_layers
from lighter_freezers.layers.said import Said, anatomy_said, tower_words
from lighter_freezers.selection.anatomy import Anatomy
from lighter_freezers.selection.names import canonical_parameters

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "freeze_except_last_n",
    "freeze_first_n_layers",
    "freeze_last_n_layers",
    "unfreeze_first_n_layers",
    "unfreeze_last_n_layers",
]


@checked
def freeze_first_n_layers(model: nn.Module, n: int, **said: Unpack[Said]) -> int:
    """Freeze the first n layers, those next to the input.

    Frozen layers at the input need no backward pass as long as nothing below them trains: call
    `freeze_embeddings` too. A warning states the loss where the embeddings still train.

    Args:
        model: Any module with blocks. The layers of an encoder come before those of its decoder.
        n: Number of layers, of each tower where a model has two that run side by side. More than there are
            means all, with a warning.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Returns:
        The number of elements that were trainable and are now frozen.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    anatomy, towers, n, layers = _towers(model, n, "freeze_first_n_layers", said)
    chosen = [name for blocks in towers for block in blocks[:n] for name in block]
    frozen = freeze(model, chosen, f"The first {n} of {layers}")
    _warn_of_lost_gain(model, anatomy, n)
    return frozen


@checked
def freeze_last_n_layers(model: nn.Module, n: int, **said: Unpack[Said]) -> int:
    """Freeze the last n layers, those next to the head. The backward pass still goes through them.

    Args:
        model: Any module with blocks. The layers of a decoder come after those of its encoder.
        n: Number of layers, of each tower where a model has two that run side by side. More than there are
            means all, with a warning.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Returns:
        The number of elements that were trainable and are now frozen.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    _, towers, n, layers = _towers(model, n, "freeze_last_n_layers", said)
    chosen = [name for blocks in towers for block in blocks[max(len(blocks) - n, 0) :] for name in block]
    return freeze(model, chosen, f"The last {n} of {layers}")


@checked
def freeze_except_last_n(model: nn.Module, n: int, **said: Unpack[Said]) -> int:
    """Train the last n layers, the norm behind them and the head, and freeze all the rest.

    Layers among the last n that were frozen before are thawed; in layers with LoRA, only the factors are. An
    embedding that shares its weight with the head trains with the head.

    Args:
        model: Any module with blocks.
        n: Number of layers that train, of each tower where a model has two that run side by side; 0 for the
            head alone. More than there are means all, with a warning.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Returns:
        The number of elements that were trainable before the call and are now frozen.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    anatomy, towers, n, layers = _towers(model, n, "freeze_except_last_n", said)
    top = anatomy.top(n, said.get("tower"))
    rest = canonical_parameters(model).keys() - {*top, *anatomy.head_weights}
    which = f"the last {n} of {layers} and the head"
    frozen = freeze(model, rest, f"All but {which}")
    blocks = [block for each in towers for block in each[max(len(each) - n, 0) :]]
    inside = {name for block in blocks for name in block}
    norms = tuple(name for name in top if name not in inside)
    thaw_layers(model, [*blocks, norms, anatomy.head_weights], which[0].upper() + which[1:])
    return frozen


@checked
def unfreeze_first_n_layers(model: nn.Module, n: int, **said: Unpack[Said]) -> int:
    """Let the first n layers train; of layers with LoRA only the factors.

    Args:
        model: Any module with blocks.
        n: Number of layers, of each tower where a model has two that run side by side. More than there are
            means all, with a warning.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Returns:
        The number of elements that became trainable. Parameters held by a running Freezer train once it
        releases them.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    _, towers, n, layers = _towers(model, n, "unfreeze_first_n_layers", said)
    chosen = [block for blocks in towers for block in blocks[:n]]
    return thaw_layers(model, chosen, f"The first {n} of {layers}")


@checked
def unfreeze_last_n_layers(model: nn.Module, n: int, **said: Unpack[Said]) -> int:
    """Let the last n layers train; of layers with LoRA only the factors.

    Args:
        model: Any module with blocks.
        n: Number of layers, of each tower where a model has two that run side by side. More than there are
            means all, with a warning.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Returns:
        The number of elements that became trainable. Parameters held by a running Freezer train once it
        releases them.

    Raises:
        TypeError: n is not a whole number.
        ValueError: n is negative, or the model has no blocks.
    """
    _, towers, n, layers = _towers(model, n, "unfreeze_last_n_layers", said)
    chosen = [block for blocks in towers for block in blocks[max(len(blocks) - n, 0) :]]
    return thaw_layers(model, chosen, f"The last {n} of {layers}")


def _towers(
    model: nn.Module, n: int, deed: str, said: Said
) -> tuple[Anatomy, list[tuple[tuple[str, ...], ...]], int, str]:
    """The blocks of each tower that is meant, n checked against them, and "12 layers" for the log line."""
    anatomy = anatomy_said(model, said)
    anatomy.blocks_for(deed)
    check_order(model, anatomy)
    towers = [anatomy.blocks_of(name) for name in anatomy.named_towers(said.get("tower"))]
    most = max(map(len, towers))
    return anatomy, towers, checked_count(n, most, deed), f"{most} layers{tower_words(anatomy, said)}"


def _warn_of_lost_gain(model: nn.Module, anatomy: Anatomy, n: int) -> None:
    """Warn what a frozen prefix costs while the embeddings below it train."""
    parameters = canonical_parameters(model)
    training = [name for name in anatomy.embeddings if parameters[name].requires_grad]
    if not n or not training:
        return
    # how often a convolution uses its weights is known only once it runs
    is_convolutional = any(parameters[name].ndim > 2 for block in anatomy.blocks for name in block)
    lost = sum(lost_share(anatomy, stack, parameters) for stack in anatomy.stacks)
    share = "a part" if is_convolutional else f"about {100 * lost:.0f} %"
    tie = " The head shares their weight: it is frozen with them." if anatomy.is_head_tied else ""
    log.warning(
        "'%s' still trains below the first %d layers: the gradient that goes through them for it takes "
        "%s of a step. freeze_embeddings(model) saves that.%s",
        *(training[0], n, share, tie),
    )
