"""The base of LR schedulers that also work without an optimizer; the subclasses define the rates."""

import torch
from torch.optim.lr_scheduler import LRScheduler

from lighter_freezers.arguments import count

__all__ = ["OptionalOptimizerLR", "check_optimizer", "last_iteration", "share", "warmed_up"]

_PROGRESS = ("last_epoch", "_step_count", "_last_lr", "base_lrs")


class OptionalOptimizerLR(LRScheduler):
    """A torch LR scheduler whose rates are a pure function of the iteration. Abstract: `get_lr` is missing.

    Only its progress is saved, so that a resumed run follows the arguments it was started with.

    Args:
        optimizer: The optimizer whose rates to set; None to use `get_lr` alone.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        check_optimizer(type(self).__name__, optimizer)
        if optimizer is not None:
            super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Advance to the next iteration; call it after the optimizer's step.

        Raises:
            RuntimeError: There is no optimizer.
        """
        if not hasattr(self, "optimizer"):
            raise RuntimeError(
                f"This {type(self).__name__} drives no optimizer. Ask it with get_lr(iter_num), or build it "
                "with optimizer=..."
            )
        super().step(epoch)

    def state_dict(self) -> dict[str, object]:
        """The progress, as plain values."""
        return {key: value for key, value in vars(self).items() if key in _PROGRESS}


def check_optimizer(scheduler: str, optimizer: object) -> None:
    """Check that something is an optimizer or None.

    Raises:
        TypeError: It is neither.
    """
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"The first argument of {scheduler} is a torch optimizer, or None. Got {optimizer!r}. "
            "The others are given by their names."
        )


def last_iteration(value: object, begin: int) -> int | None:
    """Check `max_iters`, where a decay ends, against the iteration where it begins.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It leaves no iteration to decay in.
    """
    last = count("max_iters", value)
    if last is not None and last <= begin:
        raise ValueError(
            f"The rates begin to decay at iteration {begin}, but max_iters={last} ends it. "
            "Raise max_iters, or leave it out to keep the rates."
        )
    return last


def warmed_up(iter_num: int, warmup_iters: int) -> float:
    """The share of the rate during a linear warm-up, `(iter_num + 1) / (warmup_iters + 1)`."""
    return min(1.0, (iter_num + 1) / (warmup_iters + 1))


def share(iter_num: int, first: int, last: int | None) -> float:
    """The progress from one iteration to another, in [0, 1]; 0 where there is no last one."""
    return 0.0 if last is None else min(1.0, max(0.0, (iter_num - first) / (last - first)))
