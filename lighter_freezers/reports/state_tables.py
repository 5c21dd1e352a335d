"""Counts how much of a model trains, by component, and formats tables of it. Logs nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import sub
from typing import Literal, TypeAlias

from torch.nn import Module, Parameter

from lighter_freezers.engine import ledger
from lighter_freezers.reports.columns import columns
from lighter_freezers.reports.timeline import blocks_of, rows_of
from lighter_freezers.selection.element_counts import frozen_share, frozen_share_text, size_of
from lighter_freezers.selection.layer_names import components
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import named_aliases

__all__ = [
    "Census",
    "ComponentState",
    "changes_table",
    "component_states",
    "state_table",
    "state_table_markdown",
    "sum_of",
]

_HEADINGS = ("component", "state", "parameters", "trainable")

_Member: TypeAlias = tuple[Parameter, int, bool]  # its number of elements, and whether it is a factor of LoRA


@dataclass(frozen=True)
class ComponentState:
    """How many elements of one component train, and why the others do not.

    Attributes:
        name: The component, as `layer_names.components` calls it, or a block of several.
        num_parameters: Elements of its tensors; of a sharded tensor all shards.
        num_trainable: Elements that get gradients.
        num_held: Elements that would train if every holder released them.
        num_user_frozen: Elements that would stay frozen even then.
        num_lora: Elements that train and belong to factors of LoRA.
    """

    name: str
    num_parameters: int
    num_trainable: int
    num_held: int
    num_user_frozen: int
    num_lora: int = 0

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """The counts, in their order."""
        return self.num_parameters, self.num_trainable, self.num_held, self.num_user_frozen, self.num_lora

    @property
    def state(self) -> Literal["frozen", "trainable", "LoRA only", "partial", "user-frozen"]:
        """Whether all, some or none of it trains; "user-frozen" if none would without holders either."""
        if self.num_trainable == self.num_parameters:
            return "trainable"
        if self.num_trainable:
            return "LoRA only" if self.num_lora == self.num_trainable else "partial"
        return "frozen" if self.num_held else "user-frozen"

    @property
    def trainable_share(self) -> float:
        """The share of its elements that trains, from 0 to 1; 1 for a component without elements."""
        return 1.0 if not self.num_parameters else self.num_trainable / self.num_parameters

    @property
    def frozen_share(self) -> float:
        """The share that does not, from 0 to 1."""
        return frozen_share(self.num_trainable, self.num_parameters)


class Census:
    """Counts a model by component. Names are looked up once; a recount only reads the flags that changed.

    Args:
        model: What to count. A tensor with several names counts once, under its first.
    """

    def __init__(self, model: Module) -> None:
        aliases = list(named_aliases(model))
        parameters = dict(aliases)
        self.row_of: dict[Parameter, str] = {}
        home: dict[int, str] = {}
        self._members: dict[str, list[_Member]] = {}
        for component, names in components(model).items():
            self._members[component] = [
                (parameters[name], size_of(parameters[name]), "lora_" in name) for name in names
            ]
            home.update((id(parameters[name]), component) for name in names)
        self._component_of = {name: home[id(parameter)] for name, parameter in aliases}
        self._states = {name: _count(name, members) for name, members in self._members.items()}
        self._row_members = rows_of(list(self._states))
        self._row_of = {name: row for row, members in self._row_members.items() for name in members}
        self._rows = {row: self._row(row) for row in self._row_members}
        for name, members in self._members.items():
            self.row_of.update((parameter, self._row_of[name]) for parameter, _, _ in members)
        self.total = sum_of("total", self._states.values())

    @property
    def states(self) -> list[ComponentState]:
        """The last count, in model order."""
        return list(self._states.values())

    @property
    def rows(self) -> list[ComponentState]:
        """The last count for a table: few components one by one, more of them by block."""
        return list(self._rows.values())

    def recount(self, names: Iterable[str]) -> list[tuple[ComponentState, ComponentState]]:
        """Recount components whose flags changed.

        Args:
            names: Canonical names of the parameters whose flags changed; any alias of a tied tensor works.

        Returns:
            Each component that differs from the last count: its old and its new state.
        """
        changes = []
        for component in dict.fromkeys(map(self._component_of.__getitem__, names)):
            old, new = self._states[component], _count(component, self._members[component])
            if new != old:
                self._states[component] = new
                changes.append((old, new))
        self.total = sum_of("total", [self.total, *(_difference(old, new) for old, new in changes)])
        for row in dict.fromkeys(self._row_of[new.name] for _, new in changes):
            self._rows[row] = self._row(row)
        return changes

    def _row(self, row: str) -> ComponentState:
        return sum_of(row, [self._states[name] for name in self._row_members[row]])


def _count(name: str, members: Sequence[_Member]) -> ComponentState:
    num_parameters = num_trainable = num_user_frozen = num_lora = 0
    for parameter, num_elements, is_lora in members:
        num_parameters += num_elements
        if parameter.requires_grad:
            num_trainable += num_elements
            num_lora += num_elements if is_lora else 0
        elif ledger.is_user_frozen(parameter):
            num_user_frozen += num_elements
    num_held = num_parameters - num_trainable - num_user_frozen
    return ComponentState(name, num_parameters, num_trainable, num_held, num_user_frozen, num_lora)


def component_states(model: Module) -> list[ComponentState]:
    """What trains now, component by component, in model order.

    Args:
        model: Any module. A tensor with several names counts once, under its first.
    """
    return Census(model).states


def sum_of(name: str, states: Iterable[ComponentState]) -> ComponentState:
    """Sum the counts of several components.

    Args:
        name: The name of the sum.
        states: The components, none of them twice.
    """
    counts = [state.counts for state in states] or [(0, 0, 0, 0, 0)]
    return ComponentState(name, *map(sum, zip(*counts, strict=True)))


def _difference(old: ComponentState, new: ComponentState) -> ComponentState:
    return ComponentState(new.name, *map(sub, new.counts, old.counts))


def state_table_markdown(states: Sequence[ComponentState]) -> str:
    """A Markdown table of the state, one line per component and one for the total.

    Args:
        states: What `component_states` returns, or the rows of a `Census`.
    """
    lines = [_HEADINGS, ("---", "---", "---:", "---:"), *_table_lines(states)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def changes_table(before: Iterable[ComponentState], after: Sequence[ComponentState]) -> str:
    """What changed, as a table for the terminal: a line for each kind of change, by blocks and stages.

    Args:
        before: The earlier states of components; what it lacks, or has in another state, has changed.
        after: The states of all components now, in model order.
    """
    old, new = _by_row(before), _by_row(after)
    summary, num_parameters = NameSummary(list(new)), sum_of("total", after).num_parameters
    kinds: dict[str, list[ComponentState]] = {}
    for row in (row for row in new.values() if old.get(row.name) != row):
        states = dict.fromkeys([old.get(row.name, row).state, row.state])
        kinds.setdefault(" -> ".join(states), []).append(row)
    lines = [["state", "layers", "parameters", "share"]]
    for kind, rows in kinds.items():
        number = sum(row.num_parameters for row in rows)
        share = f"{number / max(1, num_parameters):.1%}"
        lines.append([kind, summary.compress([row.name for row in rows]), f"{number:,}", share])
    return "\n".join(f"  {line}" for line in columns(lines, num_left=2))


def _by_row(states: Iterable[ComponentState]) -> dict[str, ComponentState]:
    """The same by blocks."""
    named = {state.name: state for state in states}
    rows = blocks_of(named)
    return {row: sum_of(row, map(named.__getitem__, members)) for row, members in rows.items()}


def state_table(states: Sequence[ComponentState]) -> list[tuple[str, str, str, str]]:
    """The rows of a table of the state, the headings first and the total last."""
    return [_HEADINGS, *_table_lines(states)]


def _table_lines(states: Sequence[ComponentState]) -> list[tuple[str, str, str, str]]:
    total = sum_of("total", states)
    lines = [_line(state, state.state) for state in states]
    return [*lines, _line(total, frozen_share_text(total.num_trainable, total.num_parameters))]


def _line(state: ComponentState, text: str) -> tuple[str, str, str, str]:
    return state.name, text, f"{state.num_parameters:,}", f"{state.num_trainable:,}"
