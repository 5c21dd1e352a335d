"""What an action gets at one moment of a fit, and what it returns."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from lighter_freezers.engine.effects import ddp_wrapper
from lighter_freezers.engine.trainer_like import SchedulerLike, TrainerLike
from lighter_freezers.engine.triggers import Moment

__all__ = ["ActionResult", "StepContext"]


@dataclass(frozen=True)
class ActionResult:
    """What the actions of one moment changed; the ledger knows which parameters froze or thawed.

    Attributes:
        is_reshaped: Whether parameters have other shapes, other names, or are other objects than before.
        notes: One sentence for each change, as logged after the step number.
        ranks: LoRA rank after it, for the components whose rank changed.
    """

    is_reshaped: bool = False
    notes: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)


@dataclass
class StepContext:
    """What an action works on, at one moment of one fit.

    Attributes:
        trainer: The Trainer.
        model: The LightningModule.
        moment: Between which steps, and in which epoch.
        is_freed: Whether the DDP wrapper has been removed.
    """

    trainer: TrainerLike
    model: nn.Module
    moment: Moment
    is_freed: bool = False

    @property
    def optimizers(self) -> list[Optimizer]:
        """The Trainer's optimizers."""
        return list(self.trainer.optimizers)

    @property
    def schedulers(self) -> list[SchedulerLike]:
        """The Trainer's LR schedulers."""
        return [config.scheduler for config in self.trainer.lr_scheduler_configs]

    def random(self, seed: int, window: int) -> random.Random:
        """A generator that depends on these two numbers alone: the same on all ranks and after a resume."""
        return random.Random(f"{seed}/{window}")

    def free_parameters(self) -> None:
        """Remove the DDP wrapper, so that only the module and the optimizer refer to the parameters.

        An action calls this right before it changes the shape of a parameter. The module is wrapped again
        after the last action of this moment.
        """
        if not self.is_freed:
            self.is_freed = ddp_wrapper.take_off(self.trainer.strategy)
