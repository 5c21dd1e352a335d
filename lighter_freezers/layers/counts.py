"""How many parameters and layers a model has, and how many of them train."""

from collections.abc import Sequence

from torch import nn

from lighter_freezers.arguments import checked
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.element_counts import frozen_share, num_elements, num_trainable

__all__ = [
    "get_frozen_params",
    "get_frozen_percentage",
    "get_num_layers",
    "get_total_params",
    "get_trainable_params",
]


@checked
def get_trainable_params(model: nn.Module) -> int:
    """The number of elements that train; a tied weight counts once."""
    return num_trainable(model.parameters())


@checked
def get_frozen_params(model: nn.Module) -> int:
    """The number of elements that are frozen; a tied weight counts once."""
    return get_total_params(model) - get_trainable_params(model)


@checked
def get_total_params(model: nn.Module) -> int:
    """The number of elements of all parameters; a tied weight counts once."""
    return num_elements(model.parameters())


@checked
def get_frozen_percentage(model: nn.Module) -> float:
    """The frozen share of all elements, from 0 to 100; 0 for a model without parameters."""
    return 100 * frozen_share(get_trainable_params(model), get_total_params(model))


@checked
def get_num_layers(model: nn.Module, blocks: Sequence[str] | None = None) -> int:
    """The number of layers: blocks with weights of their own, of all stacks.

    For an encoder-decoder both count, for a Swin or a ResNet all stages. Layers that share their weights
    count once: an ALBERT has one layer, however often it is applied.

    Args:
        model: Any module; 0 for one without blocks.
        blocks: Paths or patterns of the blocks, as for `anatomy_of`. None to find them.
    """
    return len(anatomy_of(model, blocks=blocks).blocks)
