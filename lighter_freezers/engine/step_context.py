"""What an action gets at one moment of a fit, and what it returns."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.effects import ddp_wrapper
from lighter_freezers.engine.effects.optimizer_groups import parameters_in
from lighter_freezers.engine.trainer_like import SchedulerLike, TrainerLike
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.selection.anatomy.block_modules import parameters_of_blocks

__all__ = ["ActionResult", "StepContext"]

Plain = TypeVar("Plain")  # anything that can be pickled


@dataclass(frozen=True)
class ActionResult:
    """What the actions of one moment changed; the ledger knows which parameters froze or thawed.

    Attributes:
        is_reshaped: Whether parameters have other shapes, other names, or are other objects than before.
        notes: One sentence for each change, as logged after the step number.
        ranks: LoRA rank after it, for the components whose rank changed.
        depends_on_data: Whether another run of the same schedule may differ here; set by the engine.
        examples: The notes that it may not have; set by the engine.
    """

    is_reshaped: bool = False
    notes: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    depends_on_data: bool = False
    examples: tuple[str, ...] = ()


@dataclass
class StepContext:
    """What an action works on, at one moment of one fit.

    Attributes:
        trainer: The Trainer.
        model: The LightningModule.
        moment: Between which steps, and in which epoch.
        is_freed: Whether the DDP wrapper has been removed.
        loss: The mean training loss of the last optimizer step in this process, on its device; None before
            the first, and where no action `wants_loss`.
    """

    trainer: TrainerLike
    model: nn.Module
    moment: Moment
    is_freed: bool = False
    loss: Tensor | None = None

    @property
    def blocks(self) -> dict[str, list[Parameter]]:
        """The parameters of each block in forward order, as `parameters_of_blocks` names them."""
        return parameters_of_blocks(self.model)

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

    def gradient_norm(
        self, parameters: Iterable[Parameter], optimizer: Optimizer | None = None
    ) -> Tensor | None:
        """The norm of the gradients of these parameters together, on their device; None where there are none.

        It is not read on the host. Under FSDP2 it is that of the whole gradients, and every rank has to call
        it. With an optimizer, the parameters that others train are left out.
        """
        is_one_of_several = optimizer is not None and len(self.trainer.optimizers) > 1
        known = parameters_in([optimizer]) if optimizer is not None and is_one_of_several else None
        chosen = [each for each in parameters if known is None or id(each) in known]
        return _norm([each.grad for each in chosen if each.grad is not None])

    def weight_norm(self, parameters: Iterable[Parameter]) -> Tensor | None:
        """The norm of these parameters together, on their device, like `gradient_norm`."""
        return _norm(list(parameters))

    def mean_over_ranks(self, value: Tensor | float) -> Tensor:
        """The mean of a tensor or number over all ranks, the same on each; every rank has to call it."""
        return trainer_clock.mean_over_ranks(self.trainer, value)

    def of_rank_zero(self, value: Plain) -> Plain:
        """What rank zero passes, on all ranks; every rank has to call it."""
        return self.trainer.strategy.broadcast(value)

    def free_parameters(self) -> None:
        """Remove the DDP wrapper, so that only the module and the optimizer refer to the parameters.

        An action calls this right before it changes the shape of a parameter. The module is wrapped again
        after the last action of this moment.
        """
        if not self.is_freed:
            self.is_freed = ddp_wrapper.take_off(self.trainer.strategy)


@torch.no_grad()
def _norm(tensors: Sequence[Tensor]) -> Tensor | None:
    dense = [each.coalesce().values() if each.is_sparse else each for each in tensors if each.numel()]
    if not dense:
        return None
    wide = torch.float64 if any(each.dtype == torch.float64 for each in dense) else torch.float32
    norms = torch.stack([torch.linalg.vector_norm(each, dtype=wide) for each in dense])
    whole: Tensor = norms.full_tensor() if hasattr(norms, "full_tensor") else norms  # DTensors of FSDP2
    norm: Tensor = torch.linalg.vector_norm(whole)
    return norm
