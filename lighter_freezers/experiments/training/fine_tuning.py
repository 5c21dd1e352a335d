"""The optimizer of a CausalLMModule: the given one, or AdamW with warm-up and decay."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lighter_freezers.arguments import choice, count, positive
from lighter_freezers.engine import ledger
from lighter_freezers.experiments.training.optimization import lr_plan, not_negative
from lighter_freezers.gpt.lr_schedules.warmup_decay import SHAPES, WarmupDecay
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["FineTuning", "given_optimizer"]


@dataclass(frozen=True)
class FineTuning:
    """AdamW with a warm-up and a decay.

    Args:
        learning_rate: The peak rate.
        weight_decay: For matrices; vectors do not decay.
        lr_schedule: `cosine`, `linear` or `constant`, after the warm-up.
        warmup_steps: Optimizer steps over which the rate rises.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range.
    """

    learning_rate: float
    weight_decay: float
    lr_schedule: Literal["cosine", "linear", "constant"]
    warmup_steps: int

    def __post_init__(self) -> None:
        positive("learning_rate", self.learning_rate)
        not_negative("weight_decay", self.weight_decay)
        choice("lr_schedule", self.lr_schedule, SHAPES)
        if count("warmup_steps", self.warmup_steps) is None:
            raise TypeError("warmup_steps must be a whole number. Got None.")

    def optimizers(self, network: nn.Module, num_steps: float) -> dict[str, object]:
        """Lightning's dictionary of an optimizer and its scheduler.

        It includes what a callback holds at the moment, because that trains later, but not what is frozen for
        good.

        Args:
            network: The module to train.
            num_steps: Optimizer steps of the run; infinity if unknown.

        Raises:
            ValueError: Nothing trains, or the schedule decays until the end of a run without a known end.
        """
        trainable = [p for p in canonical_parameters(network).values() if not ledger.is_user_frozen(p)]
        if not trainable:
            raise ValueError("Every parameter is frozen: there is nothing to train. Give lora, or thaw some.")
        if not math.isfinite(num_steps) and self.lr_schedule != "constant":
            raise ValueError(
                f"lr_schedule: {self.lr_schedule} falls until the end of the run, and this run has none. "
                "Give the Trainer max_steps or max_epochs, or set lr_schedule: constant."
            )
        matrices, vectors = [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]
        groups: list[dict[str, object]] = [
            {"params": matrices, "weight_decay": self.weight_decay, "name": "matrices"},
            {"params": vectors, "weight_decay": 0.0, "name": "vectors"},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.learning_rate)
        last = int(num_steps) if math.isfinite(num_steps) else None
        rates = WarmupDecay(optimizer, self.lr_schedule, self.warmup_steps, last)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


def given_optimizer(
    optimizer: torch.optim.Optimizer | None,
    scheduler: LRScheduler | Mapping[str, object] | None,
    interval: str,
    monitor: str | None,
) -> dict[str, object] | None:
    """Lightning's dictionary for an optimizer from YAML; None if there is none.

    Raises:
        TypeError: It is not an optimizer, or not a scheduler.
        ValueError: There is a scheduler without its optimizer.
    """
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer. Got {optimizer!r}.")
    if optimizer is None:
        if scheduler is not None:
            raise ValueError("A scheduler drives an optimizer: give that optimizer too.")
        return None
    plan = lr_plan(scheduler, interval, monitor)
    return {"optimizer": optimizer, **({} if plan is None else {"lr_scheduler": plan})}
