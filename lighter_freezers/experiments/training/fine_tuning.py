"""The default optimizer of a CausalLMModule: AdamW with a warm-up, then a decay to 0, or none."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lighter_freezers.arguments import at_least, positive
from lighter_freezers.engine import ledger
from lighter_freezers.experiments.training.optimization import decayed_groups, not_negative
from lighter_freezers.gpt.lr_schedules.optional_optimizer import OptionalOptimizerLR, share, warmed_up
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["FineTuning"]

Shape = Literal["cosine", "linear", "constant"]


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
    lr_schedule: Shape
    warmup_steps: int

    def __post_init__(self) -> None:
        positive("learning_rate", self.learning_rate)
        not_negative("weight_decay", self.weight_decay)
        at_least("warmup_steps", self.warmup_steps)

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
        groups = [group for group in decayed_groups(trainable, self.weight_decay) if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        last = int(num_steps) if math.isfinite(num_steps) else None
        rates = WarmupDecay(optimizer, self.lr_schedule, self.warmup_steps, last)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


class WarmupDecay(OptionalOptimizerLR):
    """Each group's own rate times a shared shape.

    With i the iteration, counted from 0 in optimizer steps:

        s(i) = (i + 1) / (warmup_steps + 1)     during the warm-up
               (1 + cos(pi p)) / 2              after, `cosine`; p = (i - warmup) / (last - warmup), at most 1
               1 - p                            after, `linear`
               1                                after, `constant`

    Args:
        optimizer: The optimizer whose rates to set.
        shape: One of the three.
        warmup_steps: Optimizer steps over which the rates rise.
        num_steps: Optimizer steps of the run, where the decay ends; not used by `constant`.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, shape: Shape, warmup_steps: int, num_steps: int | None
    ) -> None:
        self.shape = shape
        self.warmup_steps = warmup_steps
        self.num_steps = num_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of each group at the current iteration."""
        return [float(base) * self._share_of_rate() for base in self.base_lrs]

    def _share_of_rate(self) -> float:
        rise = warmed_up(self.last_epoch, self.warmup_steps)
        if self.shape == "constant" or self.num_steps is None:
            return rise
        last = max(self.num_steps, self.warmup_steps + 1)
        done = share(self.last_epoch, self.warmup_steps, last)
        return rise * (1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2)
