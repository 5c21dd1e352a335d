"""The only module that imports either Lightning namespace for the callbacks.

It imports both, so that a callback passes `isinstance` in either, whatever the order of imports. The second
costs 0.08 s on top of 4 s for the first (CPU time of `import lightning.pytorch` after `pytorch_lightning`).
"""

import logging
import sys
from typing import Any, TypeAlias

from lightning.pytorch import LightningModule as _LightningModule
from lightning.pytorch.callbacks import Callback as _LightningCallback
from pytorch_lightning import LightningModule as _PyTorchLightningModule
from pytorch_lightning.callbacks import Callback as _PyTorchLightningCallback

__all__ = ["Callback", "LightningModule"]

_imported = list(sys.modules)
if _imported.index(__name__) < _imported.index("lightning") and logging.getLogger().hasHandlers():
    # `import lightning` adds a handler of its own, and every message of Lightning would be printed twice.
    logging.getLogger("lightning").handlers.clear()

LightningModule: TypeAlias = _PyTorchLightningModule | _LightningModule
_Hook: TypeAlias = Any  # Lightning declares a method here, and skips what is not callable


class Callback(_PyTorchLightningCallback, _LightningCallback):  # type: ignore[misc] # same hooks, other Trainer
    """A callback for the Trainers of both `pytorch_lightning` and `lightning.pytorch`.

    Lightning spends about a microsecond on every hook of every callback at every step, called or not.
    It skips a hook that is not callable, so the per-step hooks are None here, and a callback defines only
    those it uses.
    """

    on_train_batch_start: _Hook = None
    on_train_batch_end: _Hook = None
    on_before_zero_grad: _Hook = None
    on_before_backward: _Hook = None
    on_after_backward: _Hook = None
    on_before_optimizer_step: _Hook = None
    on_validation_batch_start: _Hook = None
    on_validation_batch_end: _Hook = None

    def __getstate__(self) -> dict[str, object]:
        """Pickle without `log` and `log_dict`, which refer to the module the callback was last used with."""
        return {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}
