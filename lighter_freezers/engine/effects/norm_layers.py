"""Stops batch-normalisation layers while all their parameters are held, and restores them after.

Only layers with running statistics matter: the others have no state besides their parameters.
"""

from typing import Literal, TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.module_hooks import ModuleHook

__all__ = ["FrozenNorms", "NormMode", "StillNorm"]

NormMode = Literal["eval", "stats", "train"]


class StillNorm:
    """One norm layer, and its settings before it was stopped."""

    def __init__(self, norm: _NormBase, parameters: list[nn.Parameter]) -> None:
        self.norm = norm
        self.parameters = parameters
        self._mode: NormMode | None = None
        self._was_training = True
        self._momentum = norm.momentum
        self._guard: RemovableHandle | None = None

    @property
    def is_due(self) -> bool:
        """Whether all its parameters are held now."""
        return all(map(ledger.is_held, self.parameters))

    def stop(self, mode: NormMode) -> None:
        """Stop updating: `eval` normalises with the running statistics, `stats` only keeps them constant."""
        if self._mode is not None:
            return
        self._mode = mode
        self._was_training = self.norm.training
        if mode == "eval":
            self.norm.eval()
            self._guard = self.norm.register_forward_pre_hook(STAY_IN_EVAL)
        elif mode == "stats" and isinstance(self.norm, _InstanceNorm):
            self._momentum, self.norm.momentum = self.norm.momentum, 0.0
        elif mode == "stats":
            self.norm.track_running_stats = False  # in training torch then neither reads nor updates them

    def resume(self) -> None:
        """Restore the layer's settings."""
        if self._mode == "eval":
            assert self._guard is not None
            self._guard.remove()
            self.norm.train(self._was_training)
        elif self._mode == "stats" and isinstance(self.norm, _InstanceNorm):
            self.norm.momentum = self._momentum
        elif self._mode == "stats":
            self.norm.track_running_stats = True
        self._mode = None


def _stay_in_eval(norm: nn.Module, _: object) -> None:
    """Undo a `model.train()` called in the meantime."""
    if norm.training:
        norm.eval()


STAY_IN_EVAL = ModuleHook(_stay_in_eval, constant="STAY_IN_EVAL")


class FrozenNorms:
    """The norm layers below a set of selections.

    Args:
        model: The module whose layers are searched.
        selections: Pairs of the parameters that one freezer selects and the mode for their norm layers.
    """

    def __init__(self, model: nn.Module, selections: list[tuple[list[nn.Parameter], NormMode]]) -> None:
        modes = [({id(parameter) for parameter in selected}, mode) for selected, mode in selections]
        self._norms: list[tuple[StillNorm, NormMode]] = []
        for norm, parameters in _norms_with_statistics(model):
            wanted = [mode for ids, mode in modes if any(id(parameter) in ids for parameter in parameters)]
            if not wanted:
                continue
            strictest = min(wanted, key=("eval", "stats", "train").index)
            if strictest != "train":
                self._norms.append((StillNorm(norm, parameters), strictest))

    def follow(self) -> None:
        """Stop or restore every norm layer according to who holds its parameters now."""
        for norm, mode in self._norms:
            if norm.is_due:
                norm.stop(mode)
            else:
                norm.resume()

    def resume(self) -> None:
        """Restore every norm layer's settings."""
        for norm, _ in self._norms:
            norm.resume()


def _norms_with_statistics(model: nn.Module) -> list[tuple[_NormBase, list[nn.Parameter]]]:
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


def _has_statistics(module: nn.Module) -> TypeGuard[_NormBase]:
    return isinstance(module, (_BatchNorm, _InstanceNorm)) and module.running_mean is not None
