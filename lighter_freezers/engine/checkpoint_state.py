"""The engine's state in a checkpoint, and how a resumed run restores it."""

from collections.abc import Mapping, Sequence

from lighter_freezers.engine.actions import Actions
from lighter_freezers.engine.checkpoint_identity import FORMAT, warn_of_changes
from lighter_freezers.engine.metric_watch import MetricWatch
from lighter_freezers.engine.rules import ActiveRule
from lighter_freezers.engine.trainer_like import SavedState
from lighter_freezers.engine.triggers import Moment

__all__ = ["EMPTY", "restore", "save", "warn"]

EMPTY: SavedState = {"rules": {}, "actions": {}, "validated_at": None}  # of a run without an engine


def save(active_rules: Sequence[ActiveRule], actions: Actions, metrics: MetricWatch) -> dict[str, object]:
    """Latches and release steps of all rules, and the state of all actions, in plain types."""
    return {
        "format": FORMAT,
        "rules": {active.key: active.state() for active in active_rules},
        "actions": actions.state(),
        "validated_at": metrics.validated_at,
    }


def restore(
    active_rules: Sequence[ActiveRule], actions: Actions, metrics: MetricWatch, state: SavedState
) -> tuple[list[str], list[str]]:
    """Restore the state of every rule and action.

    Returns:
        Titles of the actions that find no state and lose by it, and of what has state and no owner.
    """
    without_owner = _restore_rules(active_rules, state["rules"])
    without_state, done_by_others = actions.remember(state["actions"])
    metrics.validated_at = state["validated_at"]
    return without_state, [*without_owner, *done_by_others]


def warn(active_rules: Sequence[ActiveRule], unmatched: tuple[list[str], list[str]], moment: Moment) -> None:
    """Warn what starts without state at the first step of a resumed run, and about state without an owner."""
    anew = [active.title for active in active_rules if active.misses_state(moment)]
    warn_of_changes([*anew, *unmatched[0]], unmatched[1])


def _restore_rules(active_rules: Sequence[ActiveRule], states: Mapping[str, SavedState]) -> list[str]:
    """Restore the state of every rule from a checkpoint.

    Returns:
        Titles of the rules whose state holds what a metric was, and that this run does not have.
    """
    left = dict(states)
    for active in active_rules:
        if active.key in left:
            active.remember(left.pop(active.key))
    return [
        state["title"]
        for state in left.values()
        if state["has_fired"] or state["num_without_progress"] or state["best"] is not None
    ]
