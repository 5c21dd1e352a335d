"""AutoFreeze: freeze blocks from the input upwards, once their gradients have stopped changing."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import Parameter

from lighter_freezers import arguments
from lighter_freezers.policies.forward_units import forward_units
from lighter_freezers.policies.layer_policy import LayerPolicy, Options
from lighter_freezers.policies.window import Window

__all__ = ["AutoFreeze"]

_SMALLEST = 1.0e-12  # of what a change is divided by


class AutoFreeze(LayerPolicy):
    """Freeze blocks from the input upwards whose gradient norms change least; what froze stays frozen.

    AutoFreeze (https://arxiv.org/abs/2102.01386). At the end of each interval, each block that trains has
    `eta = |before - now| / before`, with the mean gradient norms of the last two intervals. All blocks below
    the first whose eta is at or above the percentile of those that train freeze. The embeddings go with the
    first block; the head always trains.

    | call | what trains |
    |---|---|
    | `AutoFreeze(every_n_steps=100)` | at first everything, then less at most every 100 steps |
    | `AutoFreeze(100, percentile=20)` | the same, freezing later |

    Args:
        every_n_steps: Optimizer steps in an interval; the authors' code takes a tenth of the run, `10%`.
        percentile: From 0 (freezes little) to 100.
        options: `rest`, `optimizer_state`, `cut_gradient` and `blocks`, as for `LayerPolicy`.
    """

    statistic = "gradient_norm"

    def __init__(self, every_n_steps: int | str = 100, percentile: float = 50.0, **options: Options) -> None:
        super().__init__(every_n_steps, **options)
        self.percentile = 100 * arguments.fraction(
            "percentile / 100", arguments.number("percentile", percentile) / 100
        )

    def units(self, model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
        """The blocks; the embeddings are with the first."""
        units = forward_units(model, self.blocks)
        embeddings = units.pop("embeddings", [])
        units.pop("head", None)
        first = next(iter(units))
        return {**units, first: [*embeddings, *units[first]]}

    def choose(self, window: Window) -> Iterable[str]:
        """All but those below the first block that still changes; what had no gradient is not compared."""
        training = [unit for unit in window.units if unit in window.training]
        before, now = window.memory.get("before", {}), window.measured
        window.memory["before"] = dict(now)
        compared = [unit for unit in training if unit in now]
        if not compared or not before.keys() >= {*compared}:
            return training
        change = [abs(before[unit] - now[unit]) / max(before[unit], _SMALLEST) for unit in compared]
        limit = float(torch.tensor(change, dtype=torch.float64).quantile(self.percentile / 100))
        stable = compared[: next(i for i, value in enumerate(change) if value >= limit)]
        return [unit for unit in training if unit not in stable]
