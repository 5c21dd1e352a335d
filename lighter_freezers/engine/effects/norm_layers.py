"""Batch-normalisation layers that stand still while all their parameters are held, and move again after.

Only layers with running statistics matter: the others have no state besides their parameters.
"""

from typing import Literal, TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine import ledger

__all__ = ["FrozenNorms", "NormMode", "StillNorm"]

NormMode = Literal["eval", "stats", "train"]


class StillNorm:
    """One norm layer, and what it was before it was made to stand still."""

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
        """Stand still: `eval` normalises with the running statistics, `stats` only keeps them from moving."""
        if self._mode is not None:
            return
        self._mode = mode
        self._was_training = self.norm.training
        if mode == "eval":
            self.norm.eval()
            self._guard = self.norm.register_forward_pre_hook(_stay_in_eval)
        elif mode == "stats" and isinstance(self.norm, _InstanceNorm):
            self._momentum, self.norm.momentum = self.norm.momentum, 0.0
        elif mode == "stats":
            self.norm.track_running_stats = False  # in training torch then neither reads nor updates them

    def resume(self) -> None:
        """Be again what it was."""
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
    """Undo a `model.train()` that somebody called in between."""
    if norm.training:
        norm.eval()


class FrozenNorms:
    """The norm layers below a set of selections.

    Args:
        model: Where the layers are looked for.
        selections: Pairs of the parameters that one freezer selects, and what its norm layers shall do.
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
        """Bring every norm layer in line with who holds its parameters now."""
        for norm, mode in self._norms:
            if norm.is_due:
                norm.stop(mode)
            else:
                norm.resume()

    def resume(self) -> None:
        """Let every norm layer be what it was."""
        for norm, _ in self._norms:
            norm.resume()


def _norms_with_statistics(model: nn.Module) -> list[tuple[_NormBase, list[nn.Parameter]]]:
    """Each norm layer with the parameters it goes with: its own, or its parent's where it has none."""
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
