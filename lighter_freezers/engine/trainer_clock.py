"""The only room that reads a Trainer's counters and metrics."""

from typing import Any

import torch

from lighter_freezers.engine.triggers import Moment

__all__ = ["metrics", "moment", "reduced", "validation_was_due", "window_length"]


def moment(trainer: Any) -> Moment:
    """Where the Trainer stands: optimizer steps done (all optimizers together), and the epoch."""
    return Moment(trainer.global_step, trainer.current_epoch)


def window_length(trainer: Any) -> int:
    """Batches in one accumulation window."""
    return int(trainer.accumulate_grad_batches)


def validation_was_due(trainer: Any, batch_idx: int) -> bool:
    """Whether an uninterrupted run has validated between the batch before and this one."""
    if not trainer.enable_validation:
        return False
    if batch_idx:
        return bool(batch_idx % trainer.val_check_batch == 0)
    epochs = trainer.check_val_every_n_epoch
    return epochs is not None and trainer.current_epoch > 0 and trainer.current_epoch % epochs == 0


def metrics(trainer: Any) -> dict[str, torch.Tensor]:
    """The latest values of all logged metrics, not read on the host."""
    return dict(trainer.callback_metrics)


def reduced(trainer: Any, value: torch.Tensor) -> float:
    """The mean of a metric over all ranks, the same number on each of them."""
    value = value.detach().clone().float().to(trainer.strategy.root_device)
    return float(trainer.strategy.reduce(value, reduce_op="mean"))
