"""Stops batch and spectral norms while all their parameters are held, and restores them after.

Only layers with statistics of their own matter: the others have no state besides their parameters.
"""

from collections.abc import Iterable
from itertools import chain

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.module_hooks import ModuleHook
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.terms import NormMode, strictest_norms

__all__ = ["FrozenNorms", "StillNorm", "norms_with_statistics"]


class StillNorm:
    """One norm layer, and its settings before it was stopped."""

    def __init__(self, norm: nn.Module, parameters: list[nn.Parameter]) -> None:
        self.norm = norm
        self.parameters = parameters
        self._mode: NormMode | None = None
        self._was_training = True
        self._momentum = getattr(norm, "momentum", None)
        self._guard: RemovableHandle | None = None

    @property
    def is_due(self) -> bool:
        """Whether all its parameters are held now."""
        return all(map(ledger.is_held, self.parameters))

    def stop(self, mode: NormMode) -> None:
        """Stop updating: `eval` normalises with the running statistics, `stats` only keeps them constant."""
        if _is_spectral(self.norm) and mode == "stats":
            mode = "eval"  # its vectors are all it has
        if self._mode == mode:
            return
        self.resume()
        self._mode = mode
        self._was_training = self.norm.training
        if mode == "eval":
            self.norm.eval()
            self._guard = self.norm.register_forward_pre_hook(STAY_IN_EVAL, prepend=True)
        elif mode == "stats" and isinstance(self.norm, _InstanceNorm):
            self._momentum, self.norm.momentum = self.norm.momentum, 0.0
        elif mode == "stats" and isinstance(self.norm, _BatchNorm):
            self.norm.track_running_stats = False  # in training torch then neither reads nor updates them

    def resume(self) -> None:
        """Restore the layer's settings."""
        if self._mode == "eval":
            assert self._guard is not None
            self._guard.remove()
            self.norm.train(self._was_training)
        elif self._mode == "stats" and isinstance(self.norm, _InstanceNorm):
            self.norm.momentum = self._momentum
        elif self._mode == "stats" and isinstance(self.norm, _BatchNorm):
            self.norm.track_running_stats = True
        self._mode = None


def _stay_in_eval(norm: nn.Module, _: object) -> None:
    """Undo a `model.train()` called in the meantime."""
    if norm.training:
        norm.eval()


STAY_IN_EVAL = ModuleHook(_stay_in_eval, constant="STAY_IN_EVAL")


class FrozenNorms:
    """The norm layers that may have to stop.

    Args:
        model: The module whose layers are searched.
        freezable: What may be held: layers without any of it are left alone.
    """

    def __init__(self, model: nn.Module, freezable: Iterable[nn.Parameter]) -> None:
        ids = {id(parameter) for parameter in freezable}
        self._norms = [
            StillNorm(norm, parameters)
            for norm, parameters in norms_with_statistics(model)
            if not ids.isdisjoint(map(id, parameters))
        ]
        self._norms_of: dict[int, list[StillNorm]] = {}  # by the id of a parameter
        for norm in self._norms:
            for parameter in norm.parameters:
                self._norms_of.setdefault(id(parameter), []).append(norm)

    def follow(self, moved: Iterable[Hold] | None = None) -> None:
        """Stop or restore norm layers according to who holds their parameters now.

        Args:
            moved: The holds that began or ended; None for every norm layer.
        """
        norms = self._norms
        if norms and moved is not None:
            held = chain.from_iterable(hold.parameters for hold in moved)
            ids = self._norms_of.keys() & set(map(id, held))
            norms = list({id(norm): norm for key in ids for norm in self._norms_of[key]}.values())
        for norm in norms:
            if norm.is_due:
                norm.stop(strictest_norms(chain(*map(ledger.terms_of, norm.parameters))))
            else:
                norm.resume()

    def resume(self) -> None:
        """Restore every norm layer's settings."""
        for norm in self._norms:
            norm.resume()


def norms_with_statistics(model: nn.Module) -> list[tuple[nn.Module, list[nn.Parameter]]]:
    """Each norm layer with its parameters, or its parent's where it has none."""
    found = []
    seen: set[int] = set()
    for parent in model.modules():
        for child in parent.children():
            if _has_statistics(child) and id(child) not in seen:
                parameters = list(child.parameters()) or list(parent.parameters())
                if parameters:
                    seen.add(id(child))
                    found.append((child, parameters))
    return found


def _has_statistics(module: nn.Module) -> bool:
    is_norm = isinstance(module, (_BatchNorm, _InstanceNorm)) and module.running_mean is not None
    return is_norm or _is_spectral(module)


def _is_spectral(module: nn.Module) -> bool:
    """Whether it is a spectral norm, whose vectors move at each pass in training: either kind of torch's."""
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)
