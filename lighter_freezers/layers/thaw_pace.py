"""When the stages of a gradual unfreezing start, from YAML. `thaw_order.py` decides what is in a stage."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lighter_freezers import arguments
from lighter_freezers.engine.triggers import MetricTrigger, Plateau, Schedule, parse_plateau

__all__ = ["Pace", "num_unfrozen_layers", "parse_pace"]


@dataclass(frozen=True)
class Pace:
    """When stages start: one of four ways, or none of them for a single stage.

    Attributes:
        every_n_epochs: Stage k starts at epoch `k * every_n_epochs`.
        every_n_steps: Stage k starts at optimizer step `k * every_n_steps`.
        total_epochs: Stage k starts at epoch k, and blocks are distributed evenly over this many epochs.
        plateau: Stage k starts at the k-th plateau of a metric.
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    total_epochs: int | None = None
    plateau: Plateau | None = None

    def num_blocks(self, num_blocks: int, layers_per_stage: int, begins_with_head: bool) -> list[int]:
        """How many blocks train in each stage, up to the one in which all do."""
        if self.total_epochs is not None:
            least = 0 if begins_with_head else 1
            wanted = [
                num_unfrozen_layers(epoch, num_blocks, self.total_epochs)
                for epoch in range(self.total_epochs)
            ]
            return [max(least, number) for number in wanted]
        if self == Pace():
            return [num_blocks]
        num_stages = math.ceil(num_blocks / layers_per_stage)
        first = 0 if begins_with_head else 1
        return [min(stage * layers_per_stage, num_blocks) for stage in range(first, num_stages + 1)]

    def hold(self, stage: int) -> tuple[Schedule, MetricTrigger | None]:
        """The schedule that holds a stage until it thaws; what thaws in stage 0 is never held."""
        if stage == 0:
            return Schedule(until_step=0), None
        if self.plateau is not None:
            return Schedule(), replace(self.plateau, number=stage)
        if self.every_n_steps is not None:
            return Schedule(until_step=_times(stage, self.every_n_steps)), None
        return Schedule(until_epoch=_times(stage, self.every_n_epochs or 1)), None

    def bound(self, stage: int) -> dict[str, object]:
        """What ends the stage before, as it stands in a list of stages."""
        if self.plateau is not None:
            plateau = {key: getattr(self.plateau, key) for key in ("patience", "min_delta", "mode")}
            return {"until_metric": {"monitor": self.plateau.monitor, "plateau": plateau}}
        hold, _ = self.hold(stage)
        bounds = {"until_step": hold.until_step, "until_epoch": hold.until_epoch}
        return {
            key: f"{bound}" if isinstance(bound, arguments.Share) else bound
            for key, bound in bounds.items()
            if bound is not None
        }

    def __str__(self) -> str:
        if self.plateau is not None:
            return f"at each plateau of {self.plateau.monitor}"
        if self == Pace():
            return "at once"
        if self.total_epochs is not None:
            return f"over {self.total_epochs} epochs"
        number, unit = (self.every_n_steps, "step") if self.every_n_steps else (self.every_n_epochs, "epoch")
        if isinstance(number, arguments.Share):
            return f"every {number} of the run"
        return f"every {unit}" if number == 1 else f"every {number} {unit}s"


def parse_pace(
    every_n_epochs: int | str | None,
    every_n_steps: int | str | None,
    total_epochs: int | None,
    plateau: Mapping[str, object] | None,
) -> Pace:
    """Read the four arguments, of which one sets the pace; without any there is a single stage.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: Two are given, or a number is 0.
    """
    ways = {
        "every_n_epochs": every_n_epochs,
        "every_n_steps": every_n_steps,
        "total_epochs": total_epochs,
        "plateau": plateau,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} each say when layers thaw. Give one of them.")
    counted = {
        "every_n_epochs": arguments.bound("every_n_epochs", every_n_epochs, "epoch"),
        "every_n_steps": arguments.bound("every_n_steps", every_n_steps),
        "total_epochs": arguments.count("total_epochs", total_epochs),
    }
    for name, number in counted.items():
        if number == 0:
            raise ValueError(f"{name} must be at least 1. Got 0.")
    return Pace(**counted, plateau=None if plateau is None else parse_plateau("plateau", plateau))


def _times(stage: int, bound: int) -> int:
    return bound.times(stage) if isinstance(bound, arguments.Share) else stage * bound


def num_unfrozen_layers(epoch: int, num_layers: int, total_epochs: int) -> int:
    """How many layers, counted from the head, train in an epoch.

    None in the first epoch, where only the head trains; half of them in epoch `(total_epochs + 1) // 2`,
    counted from 1; all in the last. In between the number grows linearly and is rounded down.

    | epochs, counted from 1 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 |
    |---|---|---|---|---|---|---|---|---|---|---|
    | layers of 12 | 0 | 1 | 3 | 4 | 6 | 7 | 8 | 9 | 10 | 12 |

    Args:
        epoch: Counted from 0, as a training loop counts.
        num_layers: Layers of the model, 0 or more.
        total_epochs: Length of the schedule, at least 1. In a schedule of one epoch all layers train in it;
            in one of two there is no epoch between the head alone and all.

    Returns:
        A number from 0 to `num_layers`; `num_layers` from the last epoch on.

    Raises:
        ValueError: A number is negative, or there is no epoch.
    """
    if epoch < 0 or num_layers < 0 or total_epochs < 1:
        raise ValueError(
            f"Epochs and layers count from 0 and a schedule has at least 1 epoch. Got epoch {epoch}, "
            f"{num_layers} layers and {total_epochs} epochs."
        )
    last = total_epochs - 1
    halfway = last // 2
    if epoch >= last:
        return num_layers
    if epoch <= halfway:
        return num_layers * epoch // (2 * halfway) if halfway else 0
    return num_layers * (last + epoch - 2 * halfway) // (2 * (last - halfway))
