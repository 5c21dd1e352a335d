"""Keeps a Trainer's optimizers in step with the rules: groups at the start, learning rates, lost state."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from lighter_freezers._log import log
from lighter_freezers.engine import ledger, trainer_clock
from lighter_freezers.engine.effects import optimizer_groups
from lighter_freezers.engine.effects.lean_groups import LeanGroups, refuse_lean_groups
from lighter_freezers.engine.effects.learning_rates import ThawedGroup
from lighter_freezers.engine.rules import ActiveRule
from lighter_freezers.selection.names import canonical_name, canonical_parameters

__all__ = ["OptimizerFollower"]


class OptimizerFollower:
    """The optimizers of one fit.

    Args:
        active_rules: All rules of the fit, bound to the model.
    """

    def __init__(self, active_rules: Sequence[ActiveRule]) -> None:
        self._active_rules = active_rules
        self._groups: list[ThawedGroup] = []
        self._hooks: list[RemovableHandle] = []
        self._optimizers: list[Any] = []
        self._lean = LeanGroups([])
        self._named: dict[str, Parameter] = {}

    @property
    def sets_learning_rates(self) -> bool:
        """Whether some rule asks for a learning rate."""
        return bool(self._groups)

    def prepare(
        self, trainer: Any, model: nn.Module, trainable_later: Mapping[str, Parameter] | None = None
    ) -> None:
        """Give every parameter that may thaw a group, and those with a learning rate of their own another.

        Args:
            trainer: The Trainer.
            model: The module that trains.
            trainable_later: Name -> what acts, not rules, may thaw.
        """
        self._optimizers = trainer.optimizers
        if self._frees:
            refuse_lean_groups(trainer.strategy, trainer.optimizers)
            self._lean = LeanGroups(trainer.optimizers)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._add_missing(model, schedulers, trainable_later or {})
        for freezers, parameters in _selected_alike(self._active_rules):
            self._split_off(freezers, parameters, schedulers)
        for optimizer in {id(group.optimizer): group.optimizer for group in self._groups}.values():
            hook = optimizer.register_step_pre_hook(
                lambda *_: self.set_learning_rates(trainer_clock.moment(trainer).optimizer_step)
            )
            self._hooks.append(hook)
        self.set_learning_rates(trainer_clock.moment(trainer).optimizer_step)

    def set_learning_rates(self, optimizer_step: int) -> None:
        """Put the learning rates asked for in force."""
        for group in self._groups:
            group.set_learning_rate(optimizer_step)

    def forget(self, changes: Sequence[tuple[ActiveRule, list[Parameter], list[Parameter]]]) -> None:
        """Drop the state of what froze, for the rules that want it."""
        for active, frozen, _ in changes:
            if active.rule.optimizer_state == "reset":
                optimizer_groups.forget_state(frozen, self._optimizers)

    def follow(self, model: nn.Module, *, is_reshaped: bool = False) -> None:
        """Keep out of the groups what rules with `optimizer_state: free` hold now.

        Args:
            model: The module that trains.
            is_reshaped: Whether some of its parameters may be other objects than before.
        """
        if not self._frees:
            return
        if is_reshaped or not self._named:
            before, self._named = self._named, canonical_parameters(model)
            self._lean.replace({id(old): self._named[name] for name, old in before.items()})
        held = [active for active in self._active_rules if active.hold.is_active]
        frozen = [active.selected for active in held if active.rule.optimizer_state == "free"]
        self._lean.leave_out([parameter for selected in frozen for parameter in selected.values()])

    @property
    def _frees(self) -> bool:
        return any(active.rule.optimizer_state == "free" for active in self._active_rules)

    def release(self) -> None:
        """Leave the optimizers alone from now on."""
        self._lean.release()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._groups, self._optimizers = [], [], []

    def _add_missing(
        self, model: nn.Module, schedulers: Sequence[Any], trainable_later: Mapping[str, Parameter]
    ) -> None:
        known = optimizer_groups.parameters_in(self._optimizers)
        missing = {name: p for name, p in trainable_later.items() if id(p) not in known}
        for active in self._active_rules:
            absent = _absent(active, known)
            if absent and active.rule.optimizer_params == "error":
                shown = ", ".join(list(absent)[:3])
                raise RuntimeError(
                    f"{active.rule.title} will thaw {shown} ({len(absent)} in all), but no optimizer knows "
                    "them, and optimizer_params is 'error'. Build the optimizer from all parameters, or set "
                    "optimizer_params='auto' to have them added."
                )
            missing.update(absent)
        if not missing:
            return
        names = {id(parameter): canonical_name(name) for name, parameter in model.named_parameters()}
        added = optimizer_groups.add_missing(missing, names, self._optimizers, schedulers)
        for group_name, members in added.items():
            log.info("optimizer group '%s': added %d parameters that will thaw", group_name, len(members))

    def _split_off(
        self, freezers: Sequence[ActiveRule], parameters: dict[str, Parameter], schedulers: Sequence[Any]
    ) -> None:
        title = " + ".join(dict.fromkeys(active.rule.title for active in freezers if active.learning_rate))
        num_before = len(self._groups)
        moved = optimizer_groups.split_off(
            parameters, f"{title} ({num_before + 1})", self._optimizers, schedulers
        )
        self._groups += [ThawedGroup(optimizer, group, home, freezers) for optimizer, group, home in moved]


def _selected_alike(
    active_rules: Sequence[ActiveRule],
) -> list[tuple[Sequence[ActiveRule], dict[str, Parameter]]]:
    """The parameters that the same players select, where one of these asks for a learning rate."""
    active_rules_of: dict[int, list[int]] = {}
    named = {}
    for index, active in enumerate(active_rules):
        for name, parameter in active.selected.items():
            active_rules_of.setdefault(id(parameter), []).append(index)
            named[name] = parameter
    cells: dict[tuple[int, ...], dict[str, Parameter]] = {}
    for name, parameter in named.items():
        cells.setdefault(tuple(active_rules_of[id(parameter)]), {})[name] = parameter
    ordered = [([active_rules[index] for index in indices], cells[indices]) for indices in sorted(cells)]
    return [
        (freezers, cell) for freezers, cell in ordered if any(active.learning_rate for active in freezers)
    ]


def _absent(active: ActiveRule, known: set[int]) -> dict[str, Parameter]:
    """What the rule will thaw and no optimizer knows."""
    if active.rule.is_static:
        return {}
    return {
        name: parameter
        for name, parameter in active.selected.items()
        if id(parameter) not in known and not ledger.is_user_frozen(parameter)
    }
