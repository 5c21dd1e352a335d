"""The only module that reads a Trainer's counters and metrics."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter

import torch
from torch import nn

from lighter_freezers.engine.trainer_like import TrainerLike, callbacks_of, callbacks_of_kind
from lighter_freezers.engine.triggers import Moment

__all__ = [
    "NEVER",
    "StepBoundaries",
    "certain_end",
    "end_in_words",
    "epoch_metrics",
    "is_trial",
    "is_update_epoch",
    "last_moment",
    "mean_over_ranks",
    "metrics",
    "moment",
    "num_epochs",
    "reduced",
    "share_done",
    "step_counter",
    "steps_per_epoch",
    "unknown_length",
    "validation_was_due",
    "window_length",
]


_AUTOMATIC = "automatic_optimization.optim_progress.optimizer.step.total"
_MANUAL = "manual_optimization.optim_step_progress.total"
_COMPLETED = attrgetter("completed")
NEVER = 2**29  # batches: after these it checks again; a small int counts down faster than a large one


def moment(trainer: TrainerLike) -> Moment:
    """The Trainer's position: optimizer steps done (all optimizers together), and the epoch."""
    return Moment(trainer.global_step, trainer.current_epoch)


def step_counter(trainer: TrainerLike, model: nn.Module) -> Callable[[], int]:
    """A function that returns `trainer.global_step` of a fit under way, for what runs after each batch.

    Args:
        trainer: The Trainer.
        model: The LightningModule, which says whether optimization is automatic.
    """
    is_automatic = getattr(model, "automatic_optimization", True)
    try:  # where the loop counts: the property asks three objects for it, and takes ten times as long
        is_lightnings = attrgetter("global_step.fget.__module__")(type(trainer)).endswith("trainer.trainer")
        counted = attrgetter(_AUTOMATIC if is_automatic else _MANUAL)(trainer.fit_loop.epoch_loop)
    except AttributeError:
        is_lightnings = False
    return partial(_COMPLETED, counted) if is_lightnings else lambda: trainer.global_step


def share_done(trainer: TrainerLike, epoch_share: float) -> float:
    """The share of the run that is done, by steps or by epochs, whichever ends it; 0 where it has no end.

    Args:
        trainer: Runs.
        epoch_share: The share of the current epoch that is done.
    """
    now, num_epochs = moment(trainer), trainer.max_epochs or -1
    by_steps = now.optimizer_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
    return max(by_steps, (now.epoch + epoch_share) / num_epochs if num_epochs > 0 else 0.0)


def window_length(trainer: TrainerLike) -> int:
    """Batches in one accumulation window."""
    return int(trainer.accumulate_grad_batches)


class StepBoundaries:
    """Finds the batches that begin an accumulation window, also where its length changes in mid-epoch.

    Until it changes, these are the multiples of `accumulate_grad_batches`; afterwards, to the end of the
    epoch, each batch is looked at.
    """

    def __init__(self, trainer: TrainerLike) -> None:
        self.window = window_length(trainer)
        self._last_step: int | None = None  # optimizer steps before the last batch; None while regular
        self._boundary = (0, trainer.global_step)  # a batch that began a window, and the step then

    def begin_epoch(self) -> None:
        """An epoch begins with a new window."""
        self._last_step = None

    def num_batches_before(self, trainer: TrainerLike, batch_idx: int) -> int:
        """Batches to wait before it makes sense to ask again; 0 where this batch begins a window."""
        before, self.window = self.window, window_length(trainer)
        if is_update_epoch(trainer):
            return NEVER
        if self._last_step is None and (not batch_idx or before == self.window):
            if batch_idx % self.window == 0:
                self._boundary = (batch_idx, trainer.global_step)
            return -batch_idx % self.window
        last, self._last_step = self._last_step, trainer.global_step
        if last is None:  # windows were regular until the last batch began
            begin, step = self._boundary
            last = step + (batch_idx - 1 - begin) // before
        return 0 if self._last_step > last else 1

    def num_batches_until(self, steps: Iterable[int | None], optimizer_step: int) -> int:
        """Batches before the first of some optimizer steps; `NEVER` where there is none."""
        if self._last_step is not None:
            return 1
        num_steps = min((step for step in steps if step is not None), default=NEVER) - optimizer_step
        return min(num_steps * self.window, NEVER)


def is_update_epoch(trainer: TrainerLike) -> bool:
    """Whether this is the epoch that StochasticWeightAveraging adds to estimate batch norms again.

    Nothing trains in it, and a run without the callback has no epoch of this number: nothing may thaw.
    """
    averaging = callbacks_of_kind(callbacks_of(trainer), "StochasticWeightAveraging")
    return any(trainer.current_epoch > getattr(callback, "swa_end", 0) for callback in averaging)


def validation_was_due(trainer: TrainerLike, batch_idx: int, *, has_ended: bool) -> bool:
    """Whether an uninterrupted run has validated between the previous batch and this one.

    Args:
        trainer: It resumes.
        batch_idx: The number that Lightning gives to this batch.
        has_ended: Whether the previous batch was the last of its epoch.
    """
    every, num_epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or every is None:
        return False
    if num_epochs is None:  # it counts batches through all epochs
        num_batches = trainer.fit_loop.total_batch_idx
        return num_batches > 0 and num_batches % every == 0
    epoch = trainer.current_epoch + (not has_ended)  # after that of the previous batch
    # infinite on a stream, which validates at its end
    is_check = has_ended if math.isinf(every) else (batch_idx or trainer.num_training_batches) % every == 0
    return epoch > 0 and epoch % num_epochs == 0 and is_check


def last_moment(trainer: TrainerLike) -> Moment | None:
    """The last step of the run and its epoch, `NEVER` where that is unknown; None for an unknown end."""
    num_steps = trainer.estimated_stepping_batches  # which loads the data, so that it has a length
    if math.isinf(num_steps) or num_steps < 0:  # -1 for a stream without max_steps
        return None
    per_epoch = steps_per_epoch(trainer)
    return Moment(int(num_steps) - 1, int((num_steps - 1) // per_epoch) if per_epoch else NEVER)


def steps_per_epoch(trainer: TrainerLike) -> int | None:
    """Optimizer steps of an epoch, once the data is loaded; None where it has no length."""
    num_batches = trainer.num_training_batches
    return None if math.isinf(num_batches) else math.ceil(num_batches / window_length(trainer))


def validations_per_epoch(trainer: TrainerLike) -> float:
    """Validations of an epoch on average, once the data is loaded."""
    if not trainer.enable_validation:
        return 0.0
    every, num_epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    num_batches = trainer.num_training_batches
    if not every or math.isinf(every) or math.isinf(num_batches):
        return 1 / (num_epochs or 1)
    return num_batches / every if num_epochs is None else num_batches // every / num_epochs


def num_epochs(trainer: TrainerLike) -> int | None:
    """Epochs of the whole run; None where it is unknown."""
    if trainer.max_steps == -1:
        return None if trainer.max_epochs in (None, -1) else trainer.max_epochs
    last = last_moment(trainer)
    return None if last is None or last.epoch == NEVER else last.epoch + 1


def unknown_length(trainer: TrainerLike, *, is_manual: bool) -> str | None:
    """Why it is not known how many optimizer steps the run has; None where it is."""
    if is_manual:
        return "under manual optimization a batch may take any number of optimizer steps"
    accumulation = callbacks_of_kind(callbacks_of(trainer), "GradientAccumulationScheduler")
    if any(getattr(callback, "epochs", [0]) != [0] for callback in accumulation):
        return "GradientAccumulationScheduler changes how many batches make a step"
    if last_moment(trainer) is not None:
        return None
    if trainer.max_epochs == -1:
        return "the Trainer has neither max_epochs nor max_steps"
    return "the training data has no length (an iterable dataset) and the Trainer no max_steps"


def certain_end(trainer: TrainerLike, *, is_manual: bool) -> Moment | None:
    """A moment that no step of the run comes after, `NEVER` for an unknown step or epoch; None if unknown.

    That of a trial run says nothing about the real one.
    """
    if is_trial(trainer):
        return None
    last = None if unknown_length(trainer, is_manual=is_manual) else last_moment(trainer)
    if last is None and trainer.max_steps == -1 and (epochs := num_epochs(trainer)) is not None:
        return Moment(NEVER, epochs - 1)
    return last


def is_trial(trainer: TrainerLike) -> bool:
    """Whether the run only tries the code, with a few batches of an epoch."""
    return bool(getattr(trainer, "fast_dev_run", False))  # Lightning does not declare it


def end_in_words(last: Moment) -> str:
    """`at step 12, in epoch 2`, of which only what is known is said."""
    known = [("at step", last.optimizer_step + 1, last.optimizer_step), ("in epoch", last.epoch, last.epoch)]
    return ", ".join(f"{where} {number}" for where, number, at in known if at != NEVER)


def epoch_metrics(trainer: TrainerLike) -> dict[str, torch.Tensor]:
    """The means over the training epoch of what is logged on that level, as far as the epoch has come.

    Lightning publishes them at its end only, when a checkpoint may have been saved already.
    """
    return _named(trainer.fit_loop.epoch_loop._results.metrics(on_step=False)["callback"])


def metrics(trainer: TrainerLike) -> dict[str, torch.Tensor]:
    """The latest values of all logged metrics, not read on the host."""
    return _named(trainer.callback_metrics)


def _named(logged: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LighterModule logs the mean of an epoch as `val/loss/epoch`: it is found as `val/loss`, too."""
    return {**{name.removesuffix("/epoch"): value for name, value in logged.items()}, **logged}


def reduced(trainer: TrainerLike, value: torch.Tensor) -> float:
    """The mean of a metric over all ranks, the same number on each of them."""
    return float(mean_over_ranks(trainer, value.float()))


def mean_over_ranks(trainer: TrainerLike, value: torch.Tensor | float) -> torch.Tensor:
    """The mean of a tensor or number over all ranks, the same on each; every rank has to call it."""
    on_device = torch.as_tensor(value).detach().clone().to(trainer.strategy.root_device)
    return trainer.strategy.reduce(on_device, reduce_op="mean")
