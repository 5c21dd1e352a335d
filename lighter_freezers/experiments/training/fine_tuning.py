"""The default optimizer of a CausalLMModule: AdamW with warm-up and decay."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lighter_freezers.arguments import at_least, positive
from lighter_freezers.engine import ledger
from lighter_freezers.experiments.training.optimization import decayed_groups, not_negative
from lighter_freezers.gpt.lr_schedules.warmup_decay import Shape, WarmupDecay
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["FineTuning"]


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
