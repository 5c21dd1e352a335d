"""Updates a Trainer's optimizers for the rules: groups at the start, learning rates, dropped state."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers._log import log
from lighter_freezers.engine import ledger, trainer_clock
from lighter_freezers.engine.effects import optimizer_groups
from lighter_freezers.engine.effects.empty_gradients import EmptyGradients
from lighter_freezers.engine.effects.lean_groups import LeanGroups
from lighter_freezers.engine.effects.learning_rates import (
    KeptRate,
    RateFactor,
    ThawedGroup,
    ThawedRates,
)
from lighter_freezers.engine.effects.loss_scaler import ScalerKeeper
from lighter_freezers.engine.effects.optimizer_choice import sparse_parameters
from lighter_freezers.engine.effects.optimizer_history import (
    FrozenValues,
    drop_shared_history,
    give_momentum,
    refuse_dampened_momentum,
    refuse_dropped_state,
)
from lighter_freezers.engine.effects.saved_groups import GroupNames, group_names, members_of
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.rules import ActiveRule
from lighter_freezers.engine.terms import OptimizerState
from lighter_freezers.engine.trainer_like import SchedulerLike, TrainerLike, optimizers_of
from lighter_freezers.engine.trainer_strategies import refuse_lean_groups
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_name, canonical_parameters

__all__ = ["OptimizerFollower"]

_Owner: TypeAlias = ActiveRule | KeptRate | RateFactor


class OptimizerFollower:
    """The optimizers of one fit.

    Args:
        active_rules: All rules of the fit, bound to the model.
        states: What any holder asks of the optimizer state.
        factors: What scales learning rates.
        kept: Rates that parameters keep from a stage on.
    """

    def __init__(
        self,
        active_rules: Sequence[ActiveRule],
        states: Collection[OptimizerState],
        factors: Sequence[RateFactor] = (),
        kept: Sequence[KeptRate] = (),
    ) -> None:
        self._active_rules = active_rules
        self._factors = factors
        self._kept = kept
        self._states = set(states)
        self._frees = "free" in self._states
        self._rates = ThawedRates([], lambda: Moment(0, 0), has_schedulers=False)
        self._optimizers: list[Optimizer] = []
        self._lean = LeanGroups([])
        self._values = FrozenValues([])
        self._scaler = ScalerKeeper(None)
        self.empty = EmptyGradients()
        self._named: dict[str, Parameter] = {}
        self._has_step_plateau = False
        self.group_names: list[GroupNames] = []  # of all optimizers, once they are prepared

    @property
    def acts_each_step(self) -> bool:
        """Whether `keep_up` has to be called after each step: rates or values move."""
        return self._rates.is_moving or self.restores_values

    @property
    def restores_values(self) -> bool:
        """Whether an optimizer may move what is held, also between two steps."""
        return bool(self._values)

    @property
    def moves_between_steps(self) -> bool:
        """Whether values, or rates, move after the hooks of a batch: Lightning steps plateaus then."""
        return self.restores_values or (self._has_step_plateau and bool(self._rates))

    def prepare(
        self, trainer: TrainerLike, model: nn.Module, trainable_later: Mapping[str, Parameter] | None = None
    ) -> None:
        """Put every parameter that may thaw into a group, those with a rate of their own into another.

        Args:
            trainer: The Trainer.
            model: The module that trains.
            trainable_later: Name -> parameter that actions, not rules, may thaw.
        """
        self._optimizers = optimizers_of(trainer)
        if not self._optimizers:
            return
        for state in sorted(self._states - {"keep"}):
            refuse_dropped_state(self._optimizers, state)
        thawing = [each for each in self._active_rules if not each.rule.never_releases]
        if any(each.learning_rate is None for each in thawing):  # what has a rate gets a group of its own
            refuse_dampened_momentum(self._optimizers)
        if self._frees:
            refuse_lean_groups(trainer.strategy, self._optimizers)
            self._lean = LeanGroups(self._optimizers)
        self._values = FrozenValues(self._optimizers)
        self._scaler = ScalerKeeper(trainer.precision_plugin)
        configs = trainer.lr_scheduler_configs
        self._has_step_plateau = any(each.reduce_on_plateau and each.interval == "step" for each in configs)
        schedulers = [config.scheduler for config in configs]
        built = members_of(self._optimizers)
        added = self._add_missing(model, schedulers, trainable_later or {})
        groups: list[ThawedGroup] = []
        names = {id(parameter): name for name, parameter in canonical_parameters(model).items()}
        scaled = [(each, {names[id(p)]: p for p in each.parameters}) for each in self._factors]
        kept = [(each, each.selected) for each in self._kept]
        held = [(each, each.selected) for each in self._active_rules]
        for owners, parameters in _owned_alike([*held, *kept, *scaled]):
            groups += self._split_off(owners, parameters, schedulers, len(groups) + 1)
        homes = {(id(each.optimizer), each.group_index): each.home_index for each in [*added, *groups]}
        self.group_names = group_names(model, self._optimizers, built, homes)
        self._rates = ThawedRates(
            groups, lambda: trainer_clock.moment(trainer), has_schedulers=bool(schedulers)
        )
        self._rates.set()
        self.empty.find(self._optimizers)

    def keep_up(self) -> None:
        """Write the requested rates, and put back what an optimizer moved although it is held."""
        self._rates.set()
        self._values.restore()

    def without_rate(self, thawed: Sequence[Parameter]) -> list[Parameter]:
        """What has thawed and trains at the rate 0: it stands still."""
        return optimizer_groups.without_rate(thawed, self._optimizers)

    def forget(self, taken: Sequence[Hold]) -> None:
        """Drop the optimizer state of what holds that have just begun ask for."""
        for hold in taken:
            if hold.terms.optimizer_state == "reset":
                optimizer_groups.forget_state(hold.parameters, self._optimizers)

    def drop_histories(self) -> None:
        """Drop what an optimizer remembers of all parameters together: some have frozen or thawed."""
        drop_shared_history(self._optimizers)

    def follow(self, model: nn.Module, holds: Sequence[Hold], *, is_reshaped: bool = False) -> None:
        """Remove from the groups what holds with `optimizer_state: free` hold now.

        Args:
            model: The module that trains.
            holds: All holds that are active.
            is_reshaped: Whether some of its parameters may be other objects than before.
        """
        self._values.follow()
        if is_reshaped:
            self.empty.find(self._optimizers)
        if self._frees:
            if is_reshaped or not self._named:
                before, self._named = self._named, canonical_parameters(model)
                self._lean.replace({id(old): self._named[name] for name, old in before.items()})
            freeing = [hold.parameters for hold in holds if hold.terms.optimizer_state == "free"]
            self._lean.leave_out([parameter for parameters in freeing for parameter in parameters])
        give_momentum(self._optimizers)

    def release(self) -> None:
        """Put everything back into the groups, and stop managing the optimizers."""
        self._values.restore()
        self._lean.release()
        self._scaler.remove()
        self._rates.remove()
        self._optimizers = []

    def _add_missing(
        self, model: nn.Module, schedulers: Sequence[SchedulerLike], trainable_later: Mapping[str, Parameter]
    ) -> list[ThawedGroup]:
        """Returns the new groups, to follow their home groups where a scheduler does not know them."""
        known = optimizer_groups.parameters_in(self._optimizers)
        missing = {name: p for name, p in trainable_later.items() if id(p) not in known}
        asked: dict[str, int | str] = {}
        for active in self._active_rules:
            absent = _absent(active, known)
            _ask(active, absent, asked)
            if absent and active.rule.optimizer_params == "error":
                shown = ", ".join(list(absent)[:3])
                raise RuntimeError(
                    f"{active.rule.title} will thaw {shown} ({len(absent)} in all), but no optimizer knows "
                    "them, and optimizer_params is 'error'. Build the optimizer from all parameters, or set "
                    "optimizer_params='auto' to have them added."
                )
            missing.update(absent)
        if not missing:
            return []
        names = {id(parameter): canonical_name(name) for name, parameter in model.named_parameters()}
        added = optimizer_groups.add_missing(
            missing, names, self._optimizers, schedulers, asked=asked, sparse=sparse_parameters(model)
        )
        summary = NameSummary(list(names.values()))
        for group in added:
            log.info(
                "optimizer %d (%s) takes %s (%d parameters) that will thaw, in its group '%s'",
                group.optimizer_index,
                type(self._optimizers[group.optimizer_index]).__name__,
                summary.compress(group.members),
                len(group.members),
                group.name,
            )
        return [
            ThawedGroup(self._optimizers[each.optimizer_index], each.group_index, each.home_index, ())
            for each in added
        ]

    def _split_off(
        self,
        owners: Sequence[_Owner],
        parameters: dict[str, Parameter],
        schedulers: Sequence[SchedulerLike],
        number: int,
    ) -> list[ThawedGroup]:
        freezers = [each for each in owners if not isinstance(each, RateFactor)]
        factors = [each for each in owners if isinstance(each, RateFactor)]
        title = " + ".join(dict.fromkeys(each.title for each in owners if _sets_rate(each)))
        moved = optimizer_groups.split_off(parameters, f"{title} - {number}", self._optimizers, schedulers)
        requests = [each.learning_rate for each in freezers if each.learning_rate]
        if any(each.weight_decay is not None for each in requests):
            optimizer_groups.refuse_without_decay([optimizer for optimizer, _, _ in moved])
        return [ThawedGroup(optimizer, group, home, freezers, factors) for optimizer, group, home in moved]


def _sets_rate(owner: _Owner) -> bool:
    return isinstance(owner, RateFactor) or owner.learning_rate is not None


def _owned_alike(
    owned: Sequence[tuple[_Owner, Mapping[str, Parameter]]],
) -> list[tuple[Sequence[_Owner], dict[str, Parameter]]]:
    """Parameters with the same owners, where at least one of these sets a learning rate."""
    owners_of: dict[int, list[int]] = {}
    named = {}
    for index, (_, parameters) in enumerate(owned):
        for name, parameter in parameters.items():
            owners_of.setdefault(id(parameter), []).append(index)
            named[name] = parameter
    cells: dict[tuple[int, ...], dict[str, Parameter]] = {}
    for name, parameter in named.items():
        cells.setdefault(tuple(owners_of[id(parameter)]), {})[name] = parameter
    ordered = [([owned[index][0] for index in indices], cells[indices]) for indices in sorted(cells)]
    return [(owners, cell) for owners, cell in ordered if any(map(_sets_rate, owners))]


def _ask(active: ActiveRule, absent: Mapping[str, Parameter], asked: dict[str, int | str]) -> None:
    """Note which optimizer a rule wants for what is absent.

    Raises:
        ValueError: Another rule wants another one for the same parameter.
    """
    wanted = active.rule.optimizer
    for name in absent if wanted is not None else ():
        if asked.setdefault(name, wanted) != wanted:  # type: ignore[arg-type]
            raise ValueError(
                f"{active.rule.title} gives {name} to optimizer={wanted!r}, and another rule gives it to "
                f"optimizer={asked[name]!r}. Write the same in both, or in one only."
            )


def _absent(active: ActiveRule, known: set[int]) -> dict[str, Parameter]:
    """What the rule will thaw and no optimizer contains."""
    if active.rule.is_static:
        return {}
    return {
        name: parameter
        for name, parameter in active.selected.items()
        if id(parameter) not in known and not ledger.is_user_frozen(parameter)
    }
