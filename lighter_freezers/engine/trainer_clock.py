"""The only room that reads a Trainer's counters and metrics."""

import math

import torch

from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.engine.triggers import Moment

__all__ = ["last_moment", "metrics", "moment", "reduced", "validation_was_due", "window_length"]


def moment(trainer: TrainerLike) -> Moment:
    """The Trainer's position: optimizer steps done (all optimizers together), and the epoch."""
    return Moment(trainer.global_step, trainer.current_epoch)


def window_length(trainer: TrainerLike) -> int:
    """Batches in one accumulation window."""
    return int(trainer.accumulate_grad_batches)


def validation_was_due(trainer: TrainerLike, batch_idx: int) -> bool:
    """Whether an uninterrupted run has validated between the previous batch and this one."""
    if not trainer.enable_validation:
        return False
    if batch_idx:
        return trainer.val_check_batch is not None and batch_idx % trainer.val_check_batch == 0
    epochs = trainer.check_val_every_n_epoch
    return epochs is not None and trainer.current_epoch > 0 and trainer.current_epoch % epochs == 0


def last_moment(trainer: TrainerLike) -> Moment | None:
    """The last step of the run and its epoch; None where the end of the run is unknown."""
    num_steps, num_batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if math.isinf(num_steps):
        return None
    steps_per_epoch = math.inf if math.isinf(num_batches) else math.ceil(num_batches / window_length(trainer))
    return Moment(int(num_steps) - 1, int((num_steps - 1) // steps_per_epoch))


def metrics(trainer: TrainerLike) -> dict[str, torch.Tensor]:
    """The latest values of all logged metrics, not read on the host."""
    return dict(trainer.callback_metrics)


def reduced(trainer: TrainerLike, value: torch.Tensor) -> float:
    """The mean of a metric over all ranks, the same number on each of them."""
    value = value.detach().clone().float().to(trainer.strategy.root_device)
    return float(trainer.strategy.reduce(value, reduce_op="mean"))
