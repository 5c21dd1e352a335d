"""Measures the units of a policy over a window: on the device until the window ends, then read once."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine import StepContext

__all__ = ["Statistic", "UnitStatistic"]

Statistic = Literal["gradient_norm", "relative_gradient_norm"]


class UnitStatistic:
    """The mean of a statistic of each unit over the optimizer steps of one window.

    Steps without a finite value do not count: those whose gradient overflows under a loss scaler, and of the
    relative norm those in which the weights are 0.

    Args:
        kind: `gradient_norm`, or `relative_gradient_norm`: the same divided by the norm of the weights.
    """

    def __init__(self, kind: Statistic) -> None:
        self._kind = kind
        self._sums: dict[str, Tensor] = {}  # unit -> the sum, and the number of steps in it

    def note(
        self, context: StepContext, optimizer: Optimizer, units: Mapping[str, Sequence[Parameter]]
    ) -> None:
        """Add the gradients of one step; nothing is read on the host."""
        for unit, parameters in units.items():
            value = context.gradient_norm(parameters, optimizer)
            if value is None:
                continue
            if self._kind == "relative_gradient_norm":
                weights = context.weight_norm(parameters)
                value = value if weights is None else value / weights
            entry = torch.stack([value, torch.ones_like(value)])
            entry = torch.where(value.isfinite(), entry, torch.zeros_like(entry))
            before = self._sums.get(unit)
            self._sums[unit] = entry if before is None else before.to(entry.device) + entry

    def take(self, context: StepContext) -> dict[str, float]:
        """The means, the same on all ranks, and start anew; every rank has to call it."""
        sums, self._sums = self._sums, {}
        if not sums:
            return {}
        device = context.trainer.strategy.root_device
        read = context.mean_over_ranks(torch.stack([each.to(device) for each in sums.values()])).tolist()
        return {unit: total / count for unit, (total, count) in zip(sums, read, strict=True) if count}

    def state(self) -> dict[str, list[float]]:
        """The sums so far, in plain types; this reads the device."""
        return {unit: each.tolist() for unit, each in self._sums.items()}

    def remember(self, state: Mapping[str, Sequence[float]]) -> None:
        """Restore what `state` returned."""
        self._sums = {unit: torch.tensor(each) for unit, each in state.items()}
