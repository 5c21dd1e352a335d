"""MISA: layers inside the blocks, drawn by importance until a share of the parameters is filled."""

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.nn import Parameter

from lighter_freezers import arguments
from lighter_freezers.arguments import checked
from lighter_freezers.policies.forward_units import matrix_units
from lighter_freezers.policies.layer_policy import LayerPolicy, Options
from lighter_freezers.policies.window import Window
from lighter_freezers.selection.element_counts import num_elements, num_trainable

__all__ = ["Misa"]


_LARGEST_EXPONENT = 5.0  # as in the authors' code: no layer is more than e^5 times as likely as another


class Misa(LayerPolicy):
    """Train layers drawn with weights `exp(sharpness * importance ** 2)`, as many as fit into a share.

    Module-wise Importance Sampling (https://arxiv.org/abs/2511.00056), with the weights and defaults of the
    authors' code. The importance of a layer is a moving average of its mean gradient norm in the windows in
    which it trained, corrected for its start at 0; it is 0 before the first. The exponent is at most 5.

    | call | what trains |
    |---|---|
    | `Misa()` | layers with at most 3 % of the blocks' parameters, others every 50 steps |
    | `Misa(share=0.2, rest="train")` | more of them, and embeddings, norms and head |
    | `Misa(sharpness=500)` | the same share, where gradients are small, as in pretraining |

    Args:
        share: Of the parameters in these layers, at most; above 0, and at least one layer trains.
        every_n_steps: Optimizer steps between two draws.
        smoothing: Weight of the past in the moving average, from 0 to below 1.
        sharpness: 0 draws uniformly; the larger, the more the importance counts.
        options: `seed`, `rest`, `optimizer_state`, `cut_gradient` and `blocks`, as for `LayerPolicy`.
    """

    rest, statistic = "freeze", "gradient_norm"

    @checked
    def __init__(
        self,
        share: float = 0.03,
        every_n_steps: int | str = 50,
        *,
        smoothing: float = 0.8,
        sharpness: float = 1.0,
        **options: Options,
    ) -> None:
        super().__init__(every_n_steps, **options)
        self.share = arguments.fraction("share", arguments.positive("share", share))
        self.smoothing = arguments.fraction("smoothing", smoothing)
        if self.smoothing == 1:
            raise ValueError(
                "smoothing=1 would never learn an importance. Write a number below 1, such as 0.8."
            )
        self.sharpness = arguments.number("sharpness", sharpness)
        if not 0 <= self.sharpness < math.inf:
            raise ValueError(f"sharpness must be at least 0 and finite. Got {sharpness}.")

    def units(self, model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
        """The layers in the blocks that have a matrix."""
        return matrix_units(model, self.blocks)

    def prepare(self, model: nn.Module) -> dict[str, int]:
        """The number of elements of each layer, of an adapted one those that train."""
        return {path: num_trainable(unit) or num_elements(unit) for path, unit in self.units(model).items()}

    def choose(self, window: Window) -> Iterable[str]:
        """Draw without replacement; what does not fit any more is passed over."""
        averages = window.memory.setdefault("averages", {})  # layer -> the average, and how many windows
        for unit, norm in window.measured.items():
            average, num_windows = averages.get(unit, (0.0, 0))
            average = self.smoothing * average + (1 - self.smoothing) * norm
            averages[unit] = [average, num_windows + 1]
        weights = {unit: self._weight(*averages.get(unit, (0.0, 0))) for unit in window.units}
        sizes = {unit: window.prepared[unit] for unit in window.units}
        left, chosen, budget = window.free, list[str](), self.share * sum(sizes.values())
        while left:
            unit = window.random.choices(left, [weights[each] for each in left])[0]
            left.remove(unit)
            if sizes[unit] <= budget or not chosen:
                chosen.append(unit)
                budget -= sizes[unit]
        return chosen

    def _weight(self, average: float, num_windows: int) -> float:
        importance = average / (1 - self.smoothing**num_windows) if num_windows else 0.0
        return math.exp(min(_LARGEST_EXPONENT, self.sharpness * importance**2))
