"""FreezeOut: learning rates fall to 0 from the input upwards, and what has reached 0 freezes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from torch import nn
from torch.nn import Parameter

from lighter_freezers import arguments
from lighter_freezers.engine import Moment
from lighter_freezers.policies.forward_units import forward_units
from lighter_freezers.policies.layer_policy import LayerPolicy, Options
from lighter_freezers.policies.window import Window

__all__ = ["FreezeOut"]

_POWERS = {"linear": 1, "squared": 2, "cubic": 3}


class FreezeOut(LayerPolicy):
    """Anneal each layer's learning rate to 0, the lower layers first, and freeze it there.

    FreezeOut (https://arxiv.org/abs/1706.04983). Unit i of L + 1 (embeddings, blocks, head) ends at the share
    `t_i = (t0 + (1 - t0) i / L) ** power` of the run; until then its rate is the optimizer's times
    `(1 + cos(pi t / t_i)) / 2`, divided by `t_i` if `scales_rate`.

    | call | what trains |
    |---|---|
    | `FreezeOut(num_steps="100%")` | all at first; embeddings end at 51 % of the run, the head with it |
    | `FreezeOut(10_000, t0=0.5, how="linear", scales_rate=False)` | embeddings end at half of the run |

    Args:
        num_steps: Optimizer steps of the run, or `100%` of it: the rates reach 0 there.
        t0: Share of the run after which the first unit ends, before the power.
        how: `linear`, `squared` or `cubic`: the power 1, 2 or 3.
        scales_rate: Whether what ends early learns faster, so that all move as far.
        every_n_steps: Optimizer steps between two looks at what has ended; its rate is 0 until then.
        options: `optimizer_state`, `cut_gradient` and `blocks`, as for `LayerPolicy`.
    """

    def __init__(
        self,
        num_steps: int | str,
        t0: float = 0.8,
        how: Literal["linear", "squared", "cubic"] = "cubic",
        *,
        scales_rate: bool = True,
        every_n_steps: int | str = 10,
        **options: Options,
    ) -> None:
        super().__init__(every_n_steps, **options)
        steps = self.steps_or_share("num_steps", num_steps)
        if steps is None:
            raise TypeError(
                "num_steps must be a number of steps, or a share of the run such as 100%. Got None."
            )
        self.num_steps = steps
        self.t0 = arguments.fraction("t0", arguments.positive("t0", t0))
        self.power = _POWERS[arguments.choice("how", how, ("linear", "squared", "cubic"))]
        self.scales_rate = arguments.flag("scales_rate", scales_rate)

    def units(self, model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
        """Embeddings, blocks, head."""
        return forward_units(model, self.blocks)

    def choose(self, window: Window) -> Iterable[str]:
        """What has not ended, and always the last unit that can train, which is the head as a rule."""
        share = window.step / self.num_steps
        last = [*window.units[-1:], *window.free][-1:]
        return [*(unit for unit in window.units if self._end(unit, window) > share), *last]

    def rate(self, unit: str, moment: Moment, window: Window) -> float:
        """Half a cosine down to 0."""
        end = self._end(unit, window)
        share = min(1.0, moment.optimizer_step / self.num_steps / end)
        return (1 + math.cos(math.pi * share)) / 2 / (end if self.scales_rate else 1.0)

    def _end(self, unit: str, window: Window) -> float:
        place = window.units.index(unit) / max(1, len(window.units) - 1)
        return (self.t0 + (1 - self.t0) * place) ** self.power
