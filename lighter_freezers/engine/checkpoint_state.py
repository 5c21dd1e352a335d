"""The state of rules and actions: how it is saved in a checkpoint, and restored in the next run or fit."""

import weakref
from collections.abc import Mapping, Sequence

from torch import nn

from lighter_freezers.engine import trainer_clock
from lighter_freezers.engine.checkpoint_identity import (
    FORMAT,
    STATE_KEY,
    refuse_other_format,
    refuse_state_of_old_key,
    warn_of_changes,
)
from lighter_freezers.engine.effects.saved_groups import (
    Checkpoint,
    GroupNames,
    map_by_name,
    store_by_name,
)
from lighter_freezers.engine.effects.sharded_resume import ShardedResume
from lighter_freezers.engine.fit import Fit
from lighter_freezers.engine.rules import ActiveRule
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.engine.triggers import Moment

__all__ = ["RunState"]

_EMPTY: SavedState = {"rules": {}, "actions": {}, "validated_at": None}  # of a run without an engine


class RunState:
    """Where the state of a fit comes from: a checkpoint, or the last fit of the same Trainer.

    A fit without a checkpoint goes on where the last one ended only with the same Trainer, the same module
    and `global_step > 0`. Copies of this object are empty.
    """

    def __init__(self) -> None:
        self._last: SavedState = {}  # at the end of the last fit
        self._last_fit: tuple[weakref.ref[TrainerLike], weakref.ref[nn.Module]] | None = None
        self._carried: SavedState = {}  # what this fit goes on with once it trains
        self._loaded: SavedState = {}
        self._pending: SavedState | None = None  # of the checkpoint, until training begins
        self._unmatched: tuple[list[str], list[str]] = ([], [])  # actions without state, state without owner
        self._groups: list[GroupNames] = []  # of the optimizers, also after the fit
        self._to_map: Checkpoint = {}  # loaded, until the groups of the optimizers are known
        self._sharded: ShardedResume | None = None  # until training starts
        self._lost: list[str] = []  # parameters whose optimizer state has no place in this run

    def __reduce__(self) -> tuple[type["RunState"], tuple[()]]:
        return RunState, ()

    def begin(self, trainer: TrainerLike, model: nn.Module) -> None:
        """A fit is being set up."""
        last = [each() for each in self._last_fit or ()]
        is_next = last == [trainer, model] and trainer_clock.moment(trainer).optimizer_step > 0
        self._carried, self._loaded = self._last if is_next else {}, {}
        self._groups, self._to_map, self._lost, self._pending = [], {}, [], None

    def current(self, trainer: TrainerLike | None, fit: Fit) -> dict[str, object]:
        """What a checkpoint of this moment contains; no Trainer between two fits."""
        if self._pending is not None:
            return dict(self._pending)  # training has not begun: the sanity check may have failed
        if trainer is None:
            return dict(self._last)  # `trainer.save_checkpoint` after the fit
        return dict(self._carried or _state_of(fit, trainer))

    def save_groups(self, trainer: TrainerLike, fit: Fit, checkpoint: Checkpoint) -> None:
        """Store the optimizers' state in the groups from before this package made any, and the loss."""
        groups = fit.followers.optimizers.group_names or self._groups
        if groups and STATE_KEY in checkpoint["callbacks"]:
            checkpoint["callbacks"][STATE_KEY]["groups"] = store_by_name(checkpoint, groups, trainer)
        if fit.step_loss is not None and STATE_KEY in checkpoint["callbacks"]:
            # the file has the state of rank zero, and its loss is not that of the others
            checkpoint["callbacks"][STATE_KEY]["loss"] = fit.step_loss.mean_over_ranks(trainer)

    def look_at(self, trainer: TrainerLike, fit: Fit, checkpoint: Checkpoint) -> None:
        """Refuse state of an older version; without any state, everything starts from the schedule."""
        if STATE_KEY not in checkpoint["callbacks"]:
            refuse_state_of_old_key(checkpoint["callbacks"])
            self._restore(fit, _EMPTY)
            self._pending = {}
        self._to_map = checkpoint
        if self._groups:  # a strategy that loads checkpoints after `on_fit_start`
            self.map_groups(trainer, self._groups)

    def await_shards(self, trainer: TrainerLike, model: nn.Module, fit: Fit) -> None:
        """A strategy may load sharded optimizers next."""
        holds = [active.hold for active in fit.active_rules]
        holds += [hold for action in fit.actions for hold in action.holds]
        self._sharded = ShardedResume(trainer, model, holds, [each.current for each in self._groups])

    def map_groups(self, trainer: TrainerLike, groups: list[GroupNames]) -> None:
        """The groups of the optimizers are known: what is loaded gets them before Lightning reads it."""
        self._groups = groups
        if self._to_map:
            saved = self._to_map["callbacks"].get(STATE_KEY, {}).get("groups")
            self._lost = map_by_name(self._to_map, saved, groups, trainer)
            self._to_map = {}

    def load(self, fit: Fit, state: SavedState) -> None:
        """Restore the state of a checkpoint."""
        refuse_other_format(state)
        self._restore(fit, state)
        self._pending = state

    def load_again(self, fit: Fit) -> None:
        """Restore it for rules that could not be made before it was loaded."""
        if self._loaded:
            self._restore(fit, self._loaded)

    def carry_over(self, fit: Fit) -> None:
        """Training starts: go on where the last fit ended, unless a checkpoint was loaded."""
        self._pending = None
        if self._sharded is not None:
            self._sharded.end()
            self._sharded = None
        if self._carried:
            carried, self._carried = self._carried, {}
            _restore(fit, carried)

    def warn_of_changes(self, fit: Fit, moment: Moment) -> None:
        """Warn of what begins anew at the first step of a resumed run, and of state without an owner."""
        if self._loaded:
            anew = [active.title for active in fit.active_rules if active.misses_state(moment)]
            warn_of_changes([*anew, *self._unmatched[0]], self._unmatched[1], self._lost)

    def end(self, trainer: TrainerLike, model: nn.Module, fit: Fit) -> None:
        """A fit that has trained has ended or failed."""
        self._last = self.current(trainer, fit)
        self._groups = fit.followers.optimizers.group_names
        self._last_fit = weakref.ref(trainer), weakref.ref(model)

    def _restore(self, fit: Fit, state: SavedState) -> None:
        self._carried, self._loaded = {}, state
        self._unmatched = _restore(fit, state)


def _state_of(fit: Fit, trainer: TrainerLike) -> SavedState:
    return {
        "format": FORMAT,
        "rules": {active.key: active.state() for active in fit.active_rules},
        "actions": fit.actions.state(),
        "loss": None if fit.step_loss is None or fit.step_loss.value is None else float(fit.step_loss.value),
        **fit.shares.state(),
        **fit.metrics.state(trainer),
    }


def _restore(fit: Fit, state: SavedState) -> tuple[list[str], list[str]]:
    """Give every rule and action its state.

    Returns:
        Titles of the actions that find no state and lose by it, and of what has state and no owner.
    """
    without_owner = _restore_rules(fit.active_rules, state["rules"])
    without_state, done_by_others = fit.actions.remember(state["actions"])
    fit.saved_loss = state.get("loss")
    fit.shares.remember(state)
    fit.metrics.remember(state)
    return without_state, [*without_owner, *done_by_others]


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
