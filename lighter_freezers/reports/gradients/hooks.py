"""What a Trainer does to gradients between backward and step: a scale, and clipping that can be shared."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["scale_of", "share_clipping"]

_CLIP = "clip_grad_by_norm"
# Where Lightning's own methods stand, in either namespace. What somebody overrode may clip twice, change
# gradients before, or not clip at all: then norms are measured for themselves.
_MODULE, _PRECISION = "core.module", "plugins.precision."


def share_clipping(trainer: Any, pl_module: Any, clip: Callable[[Any, float], None]) -> bool:
    """Have the next clipping, which is due in a moment, done by somebody else, once.

    Args:
        trainer: The Trainer, right before it clips.
        pl_module: The LightningModule.
        clip: Called with the optimizer and the largest norm that is allowed.

    Returns:
        Whether it will be called. If not, nothing has changed.
    """
    if not _clips_by_norm(trainer) or not _is_as_lightning_made_it(trainer, pl_module):
        return False
    plugin = trainer.precision_plugin

    def once(optimizer: Any, clip_val: float) -> None:
        del vars(plugin)[_CLIP]
        clip(optimizer, float(clip_val))

    setattr(plugin, _CLIP, once)
    return True


def _clips_by_norm(trainer: Any) -> bool:
    algorithm = trainer.gradient_clip_algorithm
    return bool(trainer.gradient_clip_val) and (algorithm is None or str(algorithm.value) == "norm")


def _is_as_lightning_made_it(trainer: Any, pl_module: Any) -> bool:
    plugin = trainer.precision_plugin
    own = (pl_module.configure_gradient_clipping, pl_module.clip_gradients)
    plugged = (plugin.clip_gradients, plugin.clip_grad_by_norm, plugin.main_params)
    kinds = [method.__module__.rpartition(_MODULE)[1:] for method in own]
    homes = [method.__module__.rpartition(_PRECISION)[1:] for method in plugged]
    is_plain = all(kind == (_MODULE, "") for kind in kinds)
    return is_plain and all(home in ((_PRECISION, "precision"), (_PRECISION, "amp")) for home in homes)


def scale_of(trainer: Any, optimizer: Any) -> list[Tensor]:
    """What gradients are still multiplied by, unread: a fused optimizer divides by it in its own step.

    Returns:
        [] where they are as `backward` without mixed precision would have made them.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return []
    return [scaler.scale(torch.ones((), device=trainer.strategy.root_device))]
