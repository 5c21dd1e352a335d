"""MISA: layers inside the blocks, drawn by importance until a share of the parameters is filled."""

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.nn import Parameter

from lighter_freezers import arguments
from lighter_freezers.arguments import checked
from lighter_freezers.policies.forward_units import matrix_units
from lighter_freezers.policies.layer_policy import LayerPolicy, Options, Window
from lighter_freezers.selection.element_counts import num_elements, num_trainable

__all__ = ["Misa"]


class Misa(LayerPolicy):
    """Train layers drawn with weights `exp(sharpness * importance)`, as many as fit into a share.

    Module-wise Importance Sampling (https://arxiv.org/abs/2511.00056). The importance of a layer is a moving
    average of its mean gradient norm in the windows in which it trained, and 0 before the first.

    | call | what trains |
    |---|---|
    | `Misa()` | layers with at most 3 % of the blocks' parameters, others every 50 steps |
    | `Misa(share=0.2, rest="train")` | more of them, and embeddings, norms and head |

    Args:
        share: Of the parameters in these layers, at most; above 0, and at least one layer trains.
        every_n_steps: Optimizer steps between two draws.
        smoothing: Weight of the past in the moving average, from 0 to 1.
        sharpness: 0 draws uniformly; the larger, the more the importance counts.
        options: `seed`, `rest`, `optimizer_state` and `cut_gradient`, as for `LayerPolicy`.
    """

    rest, statistic = "freeze", "gradient_norm"

    @checked
    def __init__(
        self,
        share: float = 0.03,
        every_n_steps: int = 50,
        *,
        smoothing: float = 0.9,
        sharpness: float = 1.0,
        **options: Options,
    ) -> None:
        super().__init__(every_n_steps, **options)
        self.share = arguments.fraction("share", arguments.positive("share", share))
        self.smoothing = arguments.fraction("smoothing", smoothing)
        self.sharpness = arguments.number("sharpness", sharpness)
        if not 0 <= self.sharpness < math.inf:
            raise ValueError(f"sharpness must be at least 0 and finite. Got {sharpness}.")

    def units(self, model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
        """The layers in the blocks that have a matrix."""
        return matrix_units(model)

    def prepare(self, model: nn.Module) -> dict[str, int]:
        """The number of elements of each layer, of an adapted one those that train."""
        return {path: num_trainable(unit) or num_elements(unit) for path, unit in self.units(model).items()}

    def choose(self, window: Window) -> Iterable[str]:
        """Draw without replacement; what does not fit any more is passed over."""
        importance = window.memory.setdefault("importance", {})
        for unit, norm in window.measured.items():
            importance[unit] = self.smoothing * importance.get(unit, 0.0) + (1 - self.smoothing) * norm
        sizes = {unit: window.prepared[unit] for unit in window.units}
        left, chosen, budget = list(window.units), list[str](), self.share * sum(sizes.values())
        while left:
            values = [self.sharpness * importance.get(unit, 0.0) for unit in left]
            weights = [math.exp(value - max(values)) for value in values]
            unit = window.random.choices(left, weights)[0]
            left.remove(unit)
            if sizes[unit] <= budget or not chosen:
                chosen.append(unit)
                budget -= sizes[unit]
        return chosen
