"""How many parameters and layers a model has, and how many of them train."""

from torch import nn

from lighter_freezers.selection.anatomy import anatomy_of

__all__ = [
    "get_frozen_params",
    "get_frozen_percentage",
    "get_num_layers",
    "get_total_params",
    "get_trainable_params",
]


def get_trainable_params(model: nn.Module) -> int:
    """The number of elements that train; a tied weight counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def get_frozen_params(model: nn.Module) -> int:
    """The number of elements that are frozen; a tied weight counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


def get_total_params(model: nn.Module) -> int:
    """The number of elements of all parameters; a tied weight counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def get_frozen_percentage(model: nn.Module) -> float:
    """The frozen share of all elements, from 0 to 100; 0 for a model without parameters."""
    total = get_total_params(model)
    return 100 * get_frozen_params(model) / total if total else 0.0


def get_num_layers(model: nn.Module) -> int:
    """The number of layers: blocks with weights of their own, of all stacks.

    An encoder-decoder has those of both, a Swin or a ResNet those of all stages. Layers that share their
    weights are one: an ALBERT has one, however often it runs through it.

    Args:
        model: Any module; 0 for one without blocks.
    """
    return len(anatomy_of(model).blocks)
