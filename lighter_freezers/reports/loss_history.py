"""The loss over the steps, as the Trainer's metrics tell it: one of training, one of validation."""

import math
import re
from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

__all__ = ["LossHistory", "Points"]

Points: TypeAlias = list[tuple[int, float]]

_LOSS = re.compile(r"(^|[/_.])loss($|[/_.])")
_VALIDATION = re.compile(r"^val")
_MOST = 400  # points of one curve; above that, it keeps half of them


class LossHistory:
    """The first loss of training and the first of validation that a run logs."""

    def __init__(self, curves: Mapping[str, Points] | None = None) -> None:
        self.curves = {
            key: [(int(step), float(value)) for step, value in c] for key, c in (curves or {}).items()
        }

    def record(self, optimizer_step: int, metrics: Mapping[str, Tensor]) -> None:
        """Record the losses among the latest metrics; points of later steps are dropped."""
        for is_validation in (False, True):
            names = [
                name
                for name in metrics
                if _LOSS.search(name) and bool(_VALIDATION.match(name)) == is_validation
            ]
            known = [name for name in names if name in self.curves]
            for name in (known or names)[:1]:
                self._add(name, optimizer_step, float(metrics[name]))

    def _add(self, name: str, optimizer_step: int, value: float) -> None:
        points = [point for point in self.curves.get(name, []) if point[0] < optimizer_step]
        if math.isfinite(value) and (not points or points[-1][1] != value):
            points.append((optimizer_step, value))
        self.curves[name] = points if len(points) <= _MOST else _thinned(points)


def _thinned(points: Points) -> Points:
    """The lowest and the highest of each four that follow each other, so that a spike stays one."""
    kept = []
    for start in range(0, len(points), 4):
        four = points[start : start + 4]
        ends = {min(four, key=lambda point: point[1]), max(four, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept
