"""Auto-RGN: each tensor learns at a rate in proportion to its relative gradient norm."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.nn import Parameter

from lighter_freezers.engine import Moment
from lighter_freezers.policies.layer_policy import LayerPolicy, Options
from lighter_freezers.policies.window import Window
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["AutoRgn"]


class AutoRgn(LayerPolicy):
    """Scale the learning rate of each tensor by its relative gradient norm: that of gradient over weight.

    Auto-RGN of surgical fine-tuning (https://arxiv.org/abs/2210.11466): the tensor with the largest has the
    full rate, the others their share of it. Nothing freezes. In the first window all tensors learn at the
    full rate, while their norms are measured.

    | call | what it does |
    |---|---|
    | `AutoRgn(every_n_steps=100)` | new rates every 100 steps, from the mean over the 100 steps before |

    Args:
        every_n_steps: Optimizer steps between two settings of the rates; the paper takes an epoch.
    """

    statistic, freezes = "relative_gradient_norm", False

    def __init__(self, every_n_steps: int | str = 100, **options: Options) -> None:
        super().__init__(every_n_steps, **options)
        if self.blocks is not None:
            raise ValueError("AutoRgn scales each tensor and knows no blocks. Remove blocks.")

    def units(self, model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
        """Each tensor."""
        return {name: [parameter] for name, parameter in canonical_parameters(model).items()}

    def choose(self, window: Window) -> Iterable[str]:
        """All of them; of what did not train in the window before, the last measurement goes on."""
        norms = window.memory["norms"] = {**window.memory.get("norms", {}), **window.measured}
        window.memory["largest"] = max(norms.values(), default=0.0)
        return window.units

    def rate(self, unit: str, moment: Moment, window: Window) -> float:
        """The share of the largest relative gradient norm; 1 where nothing was measured."""
        norms = window.memory.get("norms", window.measured)  # checkpoints of before do not have it
        largest = window.memory.get("largest") or max(norms.values(), default=0.0)
        return norms.get(unit, largest) / largest if largest else 1.0
