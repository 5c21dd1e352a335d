"""Spectrum: the matrices with the highest signal-to-noise ratio train, chosen once from the weights."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import Parameter

from lighter_freezers import arguments
from lighter_freezers.policies.forward_units import matrix_units
from lighter_freezers.policies.layer_policy import LayerPolicy, Options
from lighter_freezers.policies.window import Window

__all__ = ["Spectrum", "best_of_each_kind", "ranked_kinds", "signal_to_noise"]


class Spectrum(LayerPolicy):
    """Train, of each kind of matrix in the blocks, those with the highest signal-to-noise ratio.

    Spectrum (https://arxiv.org/abs/2406.06623): singular values above a Marchenko-Pastur threshold are
    signal, the others noise; see `signal_to_noise`. The weights are scanned once, when the run begins.
    `lighter-freezers spectrum config.yaml --top 25%` prints the same choice as a Freezer.

    | call | what trains |
    |---|---|
    | `Spectrum()` | half of the matrices of each kind, and all that is in no such layer |
    | `Spectrum(top_percent=25, rest="freeze")` | a quarter of the matrices, and nothing else |

    Args:
        top_percent: Share of each kind that trains, above 0 and at most 100; at least one matrix.
        options: `rest`, `optimizer_state`, `cut_gradient` and `blocks`, as for `LayerPolicy`.
    """

    def __init__(self, top_percent: float = 50.0, **options: Options) -> None:
        super().__init__(None, **options)
        self.top_percent = arguments.positive("top_percent", top_percent)
        if self.top_percent > 100:
            raise ValueError(f"top_percent is a share of each kind, at most 100. Got {top_percent}.")

    def units(self, model: nn.Module) -> Mapping[str, Sequence[Parameter]]:
        """The layers in the blocks that have a matrix."""
        return matrix_units(model, self.blocks)

    def prepare(self, model: nn.Module) -> dict[str, float]:
        """The score of each layer."""
        return {
            path: max(signal_to_noise(each) for each in unit if each.dim() > 1)
            for path, unit in self.units(model).items()
        }

    def choose(self, window: Window) -> Iterable[str]:
        """The best of each kind."""
        return best_of_each_kind({unit: window.prepared[unit] for unit in window.units}, self.top_percent)


@torch.no_grad()
def signal_to_noise(weight: torch.Tensor) -> float:
    """The sum of the singular values above the threshold over that of the others, over the largest.

    The threshold is `sigma (1 + sqrt(beta))`, with sigma the interquartile range of the singular values over
    1.349 and beta the ratio of the shorter to the longer side. Infinite where nothing is below it.
    """
    whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    matrix = whole.detach().flatten(1).float()
    values = torch.linalg.svdvals(matrix)
    low, high = values.quantile(torch.tensor([0.25, 0.75], device=values.device))
    threshold = (high - low) / 1.349 * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
    noise = float(values[values <= threshold].sum())
    return float(values[values > threshold].sum()) / noise / float(values[0]) if noise else math.inf


def _kind_of(path: str) -> str:
    """The path of a layer without the numbers in it: `h.attn.c_attn` for `h.3.attn.c_attn`."""
    return ".".join(segment for segment in path.split(".") if not segment.isdecimal())


def ranked_kinds(scores: Mapping[str, float]) -> dict[str, list[str]]:
    """The layers of each kind, those with the highest scores first."""
    kinds: dict[str, list[str]] = {}
    for path in scores:
        kinds.setdefault(_kind_of(path), []).append(path)
    return {kind: sorted(paths, key=lambda path: -scores[path]) for kind, paths in kinds.items()}


def best_of_each_kind(scores: Mapping[str, float], top_percent: float) -> list[str]:
    """The layers with the highest scores of each kind: so many percent, and at least one."""
    ranked = ranked_kinds(scores).values()
    return [path for paths in ranked for path in paths[: max(1, int(len(paths) * top_percent / 100))]]
