"""The optimizer of our modules, given or by default, and the config of its LR scheduler."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lighter_freezers.arguments import choice, number
from lighter_freezers.gpt.lr_schedules.groups import HEAD, trunk_and_head_groups
from lighter_freezers.gpt.model import GPT

__all__ = ["adamw", "decayed_groups", "given_optimizer", "not_negative"]


def adamw(
    network: GPT, learning_rate: float, head_learning_rate: float | None, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW over all parameters, frozen ones too; matrices decay, vectors do not.

    Args:
        network: The module to train.
        learning_rate: Of everything, or of the trunk alone.
        head_learning_rate: Of the head. None: the same.
        weight_decay: Of matrices.
    """
    if head_learning_rate is None:
        groups = decayed_groups(network.parameters(), weight_decay)
    else:
        groups = [
            {**group, "lr": head_learning_rate if group["part"] == HEAD else learning_rate}
            for group in trunk_and_head_groups(network, weight_decay)
        ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def decayed_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups: matrices, which decay, and vectors (norms, biases), which do not."""
    every = list(parameters)
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay, "name": "matrices"},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0, "name": "vectors"},
    ]


def given_optimizer(
    optimizer: torch.optim.Optimizer | None,
    scheduler: LRScheduler | Mapping[str, object] | None,
    interval: str,
    monitor: str | None,
) -> dict[str, object] | None:
    """Lightning's dictionary for an optimizer from YAML; None if there is none.

    Raises:
        TypeError: It is not a scheduler.
        ValueError: There is a scheduler without its optimizer, or the interval is unknown.
    """
    choice("scheduler_interval", interval, ("step", "epoch"))
    if optimizer is None:
        if scheduler is not None:
            raise ValueError("A scheduler drives an optimizer: give that optimizer too.")
        return None
    plan = _lr_plan(scheduler, interval, monitor)
    return {"optimizer": optimizer, **({} if plan is None else {"lr_scheduler": plan})}


def _lr_plan(
    scheduler: LRScheduler | Mapping[str, object] | None, interval: str, monitor: str | None
) -> dict[str, object] | None:
    """Lightning's dictionary for a scheduler; values of a given dictionary take precedence.

    Raises:
        TypeError: It has no scheduler.
        ValueError: A `ReduceLROnPlateau` has no metric.
    """
    if scheduler is None:
        return None
    given = dict(scheduler) if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
    plan = {"interval": interval, **({} if monitor is None else {"monitor": monitor}), **given}
    if not isinstance(plan.get("scheduler"), LRScheduler):
        raise TypeError(
            "scheduler must be a torch LR scheduler, or a dictionary with one under 'scheduler'. "
            f"Got {scheduler!r}."
        )
    if isinstance(plan["scheduler"], ReduceLROnPlateau) and "monitor" not in plan:
        raise ValueError(
            "A ReduceLROnPlateau needs a metric: name it, such as `scheduler_monitor: val/loss` with "
            "`scheduler_interval: epoch`."
        )
    return plan


def not_negative(argument: str, value: object) -> float:
    """Check a finite number of at least 0.

    Raises:
        TypeError: It is not a number.
        ValueError: It is below 0, or not finite.
    """
    checked = number(argument, value)
    if not 0 <= checked < math.inf:
        raise ValueError(f"{argument} must be at least 0 and finite. Got {value}.")
    return checked
