"""Holds rows of an embedding: their gradients are zeroed, and their values put back after each step."""

import re
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine import ledger
from lighter_freezers.engine.actions import Action, ActionResult, StepContext
from lighter_freezers.engine.checkpoint_identity import rule_key
from lighter_freezers.engine.effects.optimizer_choice import sparse_parameters
from lighter_freezers.engine.effects.optimizer_history import with_step_hooks
from lighter_freezers.engine.run_shares import RunShares
from lighter_freezers.engine.trainer_like import TrainerLike, optimizers_of
from lighter_freezers.engine.trainer_strategies import refuse_sharded
from lighter_freezers.engine.triggers import Moment, Schedule
from lighter_freezers.selection.select import ParameterSelector

__all__ = ["RowHold", "Rows", "parse_rows"]

Rows = tuple[int | slice, ...]


class RowHold(Action):
    """Lets only some rows of the selected parameters move, while its schedule is active.

    A parameter stays trainable as a whole. Weight decay and momentum have no effect on the other rows:
    they get their values back after each step of an optimizer.

    Args:
        title: Names it in logs and errors.
        selector: Which parameters.
        rows: The rows that move.
        schedule: When the others are held.
    """

    kind = "rows"

    def __init__(self, title: str, selector: ParameterSelector, rows: Rows, schedule: Schedule) -> None:
        super().__init__()
        self.title = title
        self.entries = {rule_key(selector, schedule, None): title}
        self._selector, self._rows, self._schedule = selector, rows, schedule
        self._held: dict[Parameter, Tensor] = {}  # parameter -> numbers of the rows that are held
        self._values: dict[Parameter, Tensor] = {}  # of these rows, while they are held
        self._hooks: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()

    @property
    def wants_gradients(self) -> bool:
        """Whether rows are held now."""
        return bool(self._values)

    @property
    def rows_now(self) -> dict[Parameter, Tensor]:
        """The rows of each parameter that are held now."""
        return {parameter: self._on_device(parameter) for parameter in self._values}

    def setup(self, trainer: TrainerLike, model: nn.Module, stage: str) -> None:
        """Find the parameters and their rows.

        Raises:
            ValueError: A parameter has no such row, or no rows that could be held.
            RuntimeError: The strategy shards parameters, or a parameter does not train.
        """
        if stage != "fit":
            return
        refuse_sharded(trainer.strategy, f"{self.title} holds rows of whole parameters")
        self._held = {}
        sparse = sparse_parameters(model)
        for name, parameter in self._selector.select(model).items():
            if is_lazy(parameter):
                raise ValueError(
                    f"rows: {name} is of a lazy layer, which has no rows before the first batch. Build the "
                    "layer with its sizes, such as nn.Linear(8, 4)."
                )
            if id(parameter) in sparse:
                raise ValueError(f"{name} has sparse gradients, of which no rows can be held: sparse=False.")
            if ledger.is_user_frozen(parameter):
                raise RuntimeError(f"No row of {name} can train: requires_grad is False. Switch it on.")
            self._held[parameter] = _other_rows(name, parameter, self._rows)

    def resolve(self, shares: RunShares) -> None:
        """Put steps and epochs in place of shares of the run."""
        self._schedule = shares.resolved(self._schedule)

    def resume(self, context: StepContext) -> None:
        """Hold from here on, with the values that the rows have now: they have not moved before.

        Raises:
            RuntimeError: An optimizer does not call what puts them back.
        """
        for optimizer in optimizers_of(context.trainer):
            if with_step_hooks(optimizer) is not optimizer:
                raise RuntimeError(
                    f"{self.title} puts rows back after each step, of which {type(optimizer).__name__} tells "
                    "nothing: it wraps another optimizer without initialising torch's Optimizer. Return the "
                    "inner optimizer from configure_optimizers."
                )
        if self._schedule.is_active(context.moment):
            self._take()

    def next_step(self, moment: Moment) -> int | None:
        """The step at which the schedule may change."""
        return self._schedule.next_step(moment)

    def beyond(self, last: Moment) -> list[str]:
        """The schedule, where it begins too late."""
        return self._schedule.beyond(last)

    def is_due(self, moment: Moment) -> bool:
        """Whether rows have to be held or released."""
        return self._schedule.is_active(moment) != bool(self._values)

    def apply(self, context: StepContext) -> ActionResult:
        """Hold the rows, or release them."""
        number = sum(len(rows) for rows in self._held.values())
        if self._values:
            self.leave()
            return ActionResult(notes=(f"{self.title} releases {number} rows",))
        self._take()
        return ActionResult(notes=(f"{self.title} holds {number} rows",))

    @torch.no_grad()
    def before_optimizer_step(self, context: StepContext, optimizer: Optimizer) -> None:
        """Zero the gradients of the rows that are held, before they are clipped."""
        if self._values and optimizer not in self._hooks:  # one that a stage brought since they are held
            self._hooks[optimizer] = optimizer.register_step_post_hook(self._put_back)
        for parameter in self._values:
            if parameter.grad is not None:
                parameter.grad.index_fill_(0, self._on_device(parameter), 0.0)

    def leave(self) -> None:
        """Stop holding."""
        super().leave()
        for hook in self._hooks.values():
            hook.remove()
        self._values = {}
        self._hooks.clear()

    @torch.no_grad()
    def _take(self) -> None:
        self._values = {each: each[self._on_device(each)].clone() for each in self._held}

    @torch.no_grad()
    def _put_back(self, *_: object) -> None:
        for parameter, values in self._values.items():
            parameter.index_copy_(0, self._on_device(parameter), values)

    def _on_device(self, parameter: Parameter) -> Tensor:
        if self._held[parameter].device != parameter.device:
            self._held[parameter] = self._held[parameter].to(parameter.device)
        return self._held[parameter]


def parse_rows(value: object) -> Rows:
    """Read row numbers and slices from YAML: `[3, 5]`, `"50257:"`, `[0, "-8:"]`.

    Raises:
        TypeError: It is something else.
    """
    rows: list[int | slice] = []
    for each in value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]:
        match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", each) if isinstance(each, str) else None
        if match:
            rows.append(slice(*(None if bound is None else int(bound) for bound in match.groups())))
        elif isinstance(each, int) and not isinstance(each, bool):
            rows.append(each)
        else:
            raise TypeError(
                f"rows must be row numbers or slices such as [3, '50257:', '-8:']. Got {value!r}."
            )
    if not rows:
        raise TypeError("rows is empty, so none would move: leave it out to hold whole parameters.")
    return tuple(rows)


def _other_rows(name: str, parameter: Parameter, rows: Rows) -> Tensor:
    """The numbers of the rows that none of these means.

    Raises:
        ValueError: A number is none of a row, or no row is left.
    """
    length = len(parameter) if parameter.dim() else 0
    moving = torch.zeros(length, dtype=torch.bool)
    for each in rows:
        if isinstance(each, int) and not -length <= each < length:
            raise ValueError(f"rows: {name} has {length} rows, counted from 0, and no row {each}.")
        moving[each] = True
    if moving.all() or not moving.any():
        raise ValueError(
            f"rows: of the {length} rows of {name}, {int(moving.sum())} would move. Check the slices."
        )
    return (~moving).nonzero().flatten()
