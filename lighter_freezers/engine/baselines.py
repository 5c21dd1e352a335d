"""Stores in a model which of its frozen parameters were trainable before they were held, for its copies.

The ledger knows parameters by identity, which `copy.deepcopy`, pickle and `torch.save` do not preserve. Each
module that owns such a parameter therefore carries its name in an attribute, as plain strings.
"""

from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn import Parameter

from lighter_freezers.engine import ledger

__all__ = ["adopt", "mark"]

_MARK = "trains_when_released"  # the attribute: a tuple of names of the module's own parameters


def mark(model: nn.Module, parameters: Iterable[Parameter]) -> None:
    """Note those of the parameters that train once nothing holds them, and remove every other note.

    Args:
        model: What owns them.
        parameters: Those that may be held when the model is copied, or are left frozen at the end of a run.
    """
    chosen = {id(parameter) for parameter in parameters if not ledger.is_user_frozen(parameter)}
    for module in model.modules():
        names = tuple(name for name, each in _own(module) if id(each) in chosen)
        if names:
            setattr(module, _MARK, names)
        elif _MARK in module.__dict__:
            delattr(module, _MARK)


def adopt(model: nn.Module) -> None:
    """Tell the ledger what a copied model knows of its frozen parameters."""
    for module in model.modules():
        names = module.__dict__.get(_MARK, ())
        if names:
            ledger.leave(each for name, each in _own(module) if name in names)


def _own(module: nn.Module) -> Iterator[tuple[str, Parameter]]:
    return module.named_parameters(recurse=False)
