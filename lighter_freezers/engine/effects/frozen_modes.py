"""Puts modules of which everything is held into inference mode, where a hold asks for it, and back."""

from torch import nn
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.norm_layers import STAY_IN_EVAL

__all__ = ["FrozenModes"]


class FrozenModes:
    """The modules of one model that are in inference mode: those held as a whole, and all in them.

    Args:
        model: The module that trains.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._guards: dict[nn.Module, RemovableHandle] = {}
        self._were_training: dict[nn.Module, bool] = {}

    def follow(self, *, is_asked_for: bool) -> None:
        """Put into inference mode what is held now, and out of it what is not.

        Args:
            is_asked_for: Whether any active hold asks for it; if none does, no module is looked at.
        """
        wanted = dict.fromkeys(_held_modules(self._model)) if is_asked_for else {}
        for module in [each for each in self._guards if each not in wanted]:
            self._guards.pop(module).remove()
            module.training = self._were_training.pop(module)
        for module in wanted:
            if module not in self._guards:
                self._were_training[module] = module.training
                self._guards[module] = module.register_forward_pre_hook(STAY_IN_EVAL, prepend=True)
            module.training = False

    @property
    def is_active(self) -> bool:
        """Whether any module is in inference mode by this."""
        return bool(self._guards)

    def resume(self) -> None:
        """Put everything back into the mode that it had."""
        self.follow(is_asked_for=False)


def _held_modules(model: nn.Module) -> list[nn.Module]:
    """Modules with parameters, all of them held by terms that ask for it, and everything below these."""
    asking = {
        id(parameter)
        for parameter in model.parameters()
        if any(terms.frozen_mode == "eval" for terms in ledger.terms_of(parameter))
    }
    held: list[nn.Module] = []
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and asking.issuperset(map(id, parameters)):
            held += module.modules()
    return held
