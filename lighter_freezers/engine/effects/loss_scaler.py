"""Lets a GradScaler pass over an optimizer of which all is frozen, as it does over one without parameters.

It refuses an optimizer without a gradient ("No inf checks were recorded"), which a bug in the user's code may
cause. Where the optimizer has none because all in it is held, or is LoRA of rank 0, there is nothing to step.
"""

from collections.abc import Callable
from typing import Protocol

from torch.optim import Optimizer

from lighter_freezers.engine import ledger
from lighter_freezers.selection.element_counts import is_empty

__all__ = ["ScalerKeeper"]


class _Scaler(Protocol):
    unscale_: Callable[..., object]
    step: Callable[..., object]
    update: Callable[..., object]


class ScalerKeeper:
    """Stands before the scaler of a Trainer's precision plugin during a fit.

    Args:
        plugin: The precision plugin; without a scaler there is nothing to do.
    """

    def __init__(self, plugin: object) -> None:
        self._scaler: _Scaler | None = getattr(plugin, "scaler", None)
        if self._scaler is None:
            return
        self._own = self._scaler.unscale_, self._scaler.step, self._scaler.update
        self._has_passed = False  # over the optimizer whose step is under way
        self._looked_at: Optimizer | None = None  # whose gradients it has seen, though they may be gone now
        vars(self._scaler).update(unscale_=self._unscale, step=self._step, update=self._update)

    def remove(self) -> None:
        """Leave the scaler as it was."""
        for name in ("unscale_", "step", "update") if self._scaler is not None else ():
            vars(self._scaler).pop(name, None)
        self._scaler = None

    def _unscale(self, optimizer: Optimizer) -> object:
        if _is_idle(optimizer):
            return None
        self._looked_at = optimizer
        return self._own[0](optimizer)

    def _step(self, optimizer: Optimizer, *arguments: object, **named: object) -> object:
        self._has_passed = _is_idle(optimizer) and optimizer is not self._looked_at
        return None if self._has_passed else self._own[1](optimizer, *arguments, **named)

    def _update(self, *arguments: object, **named: object) -> object:
        passed, self._has_passed, self._looked_at = self._has_passed, False, None
        return None if passed else self._own[2](*arguments, **named)


def _is_idle(optimizer: Optimizer) -> bool:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(p.grad is not None or (p.requires_grad and not is_empty(p)) for p in parameters):
        return False
    return any(ledger.is_held(p) or is_empty(p) for p in parameters)
