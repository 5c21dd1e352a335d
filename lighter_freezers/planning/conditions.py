"""Conditions on a metric, whose step is unknown: what depends on them, and values that would meet them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lighter_freezers.engine.actions import Action
from lighter_freezers.engine.early_stopping import OutOfPatience
from lighter_freezers.engine.rules import ActiveRule
from lighter_freezers.engine.triggers import LossOrWait, MetricBelow, MetricTrigger, Plateau

__all__ = ["Awaited", "awaited_now"]


@dataclass(frozen=True)
class Awaited:
    """A condition that a rule or an action waits for.

    Attributes:
        monitor: The metric.
        text: The condition in words.
        value: A value that meets it.
        num_values: How many times that value has to be logged.
        order: Of several conditions on one metric, the one with the smallest is met first.
    """

    monitor: str
    text: str
    value: float
    num_values: int
    order: float


def awaited_now(active_rules: Sequence[ActiveRule], actions: Sequence[Action]) -> list[Awaited]:
    """What the rules and actions of a run wait for now; for each metric, what is met first comes first."""
    triggers: list[MetricTrigger | LossOrWait | OutOfPatience | None] = [
        active.rule.trigger for active in active_rules if active.hold.is_active and active.monitors
    ]
    triggers += [action.awaits for action in actions]
    awaited = [_awaited(trigger) for trigger in triggers if trigger is not None]
    monitors = list(dict.fromkeys(condition.monitor for condition in awaited))
    return sorted(dict.fromkeys(awaited), key=lambda each: (monitors.index(each.monitor), each.order))


def _awaited(trigger: MetricTrigger | LossOrWait | OutOfPatience) -> Awaited:
    if isinstance(trigger, OutOfPatience):
        return Awaited(trigger.monitor, f"{trigger}", 0.0, 1, 0.0)
    if isinstance(trigger, Plateau):
        num_values = trigger.patience * trigger.number
        return Awaited(trigger.monitor, f"{trigger}", math.nan, num_values, num_values)
    if isinstance(trigger, MetricBelow) and trigger.above is not None:
        return Awaited(
            trigger.monitor, f"{trigger}", math.nextafter(trigger.above, math.inf), 1, trigger.above
        )
    bound = trigger.below if isinstance(trigger, MetricBelow) else trigger.trigger_loss
    assert bound is not None
    return Awaited(
        trigger.monitor, f"{trigger.monitor} < {bound:g}", math.nextafter(bound, -math.inf), 1, -bound
    )
