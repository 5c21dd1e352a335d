"""What a Trainer does to gradients before the optimizer step: loss scale, and clipping to share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from lighter_freezers._lightning import LightningModule
from lighter_freezers.engine.trainer_like import TrainerLike

__all__ = ["scale_of", "share_clipping"]

_CLIP = "clip_grad_by_norm"
# The modules of Lightning's own methods, in either namespace. An overridden method may clip twice, change
# gradients before, or not clip at all: then norms are measured separately.
_MODULE, _PRECISION = "core.module", "plugins.precision."


def share_clipping(
    trainer: TrainerLike, pl_module: LightningModule, clip: Callable[[Optimizer, float], None]
) -> bool:
    """Replace the next clipping, which follows immediately, by another function, once.

    Args:
        trainer: The Trainer, right before it clips.
        pl_module: The LightningModule.
        clip: Called with the optimizer and the largest allowed norm.

    Returns:
        Whether it will be called. If not, nothing has changed.
    """
    if not _clips_by_norm(trainer) or not _is_as_lightning_made_it(trainer, pl_module):
        return False
    plugin = trainer.precision_plugin

    def once(optimizer: Optimizer, clip_val: float) -> None:
        del vars(plugin)[_CLIP]
        clip(optimizer, float(clip_val))

    setattr(plugin, _CLIP, once)
    return True


def _clips_by_norm(trainer: TrainerLike) -> bool:
    algorithm = trainer.gradient_clip_algorithm
    return bool(trainer.gradient_clip_val) and (algorithm is None or str(algorithm.value) == "norm")


def _is_as_lightning_made_it(trainer: TrainerLike, pl_module: LightningModule) -> bool:
    plugin = trainer.precision_plugin
    own = (pl_module.configure_gradient_clipping, pl_module.clip_gradients)
    plugged = (plugin.clip_gradients, plugin.clip_grad_by_norm, plugin.main_params)
    kinds = [method.__module__.rpartition(_MODULE)[1:] for method in own]
    homes = [method.__module__.rpartition(_PRECISION)[1:] for method in plugged]
    is_plain = all(kind == (_MODULE, "") for kind in kinds)
    return is_plain and all(home in ((_PRECISION, "precision"), (_PRECISION, "amp")) for home in homes)


def scale_of(trainer: TrainerLike, optimizer: Optimizer) -> list[Tensor]:
    """The loss scale still in the gradients, on the device: a fused optimizer divides by it in its own step.

    Returns:
        [] where gradients are unscaled.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return []
    return [scaler.scale(torch.ones((), device=trainer.strategy.root_device))]
