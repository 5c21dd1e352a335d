"""Optimizer groups in checkpoints: stored as the run's own code built them, and mapped by parameter name.

A checkpoint has the groups that the run would have without callbacks of ours, so it resumes without them too.
The names of their parameters, and the groups that this package made, are stored beside our own state.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine.effects.optimizer_groups import PER_GROUP
from lighter_freezers.engine.trainer_like import ParameterGroup, SavedState, TrainerLike
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["Checkpoint", "GroupNames", "group_names", "map_by_name", "members_of", "store_by_name"]

Checkpoint: TypeAlias = dict[str, Any]  # Lightning's: the writer of a key sets its type
Names: TypeAlias = list[list[str]]  # of the parameters of each group
_Choice: TypeAlias = tuple[int, Sequence[int]]  # how many groups there were, and which of them are meant


@dataclass(frozen=True)
class GroupNames:
    """The parameters in the groups of one optimizer, by name.

    Attributes:
        title: Number and class of the optimizer, for errors.
        stored: The groups as a run without callbacks of ours has them.
        current: The groups of this run: those of `stored`, then those that this package made.
        homes: For each of `current`, the index of that of `stored` whose options it has.
        titles: For each of `current`, its entry `name`, where it has one.
    """

    title: str
    stored: Names
    current: Names
    homes: list[int]
    titles: list[ParameterGroup]


def members_of(optimizers: Iterable[Optimizer]) -> list[list[list[Parameter]]]:
    """The parameters of each group of each optimizer."""
    return [[list(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers]


def group_names(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    built: Sequence[Sequence[Sequence[Parameter]]],
    homes: Mapping[tuple[int, int], int],
) -> list[GroupNames]:
    """Name the parameters in the groups of all optimizers.

    Args:
        model: What trains.
        optimizers: With all groups that this package makes.
        built: `members_of` them before it made any.
        homes: Id of an optimizer, index of a group made since -> index of the group it was made from.
    """
    names = {id(parameter): name for name, parameter in canonical_parameters(model).items()}
    order = {name: place for place, name in enumerate(names.values())}
    found = []
    for number, (optimizer, own) in enumerate(zip(optimizers, built, strict=True)):
        for parameter in chain(*own):  # one that the model does not have is known by its place
            names.setdefault(id(parameter), f"{number}/{len(names)}")
        stored = [[names[id(parameter)] for parameter in group] for group in own]
        current = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        known, roots = set(chain(*stored)), list(range(len(own)))
        for index in range(len(own), len(current)):
            roots.append(roots[homes[id(optimizer), index]])
            added = [name for name in current[index] if name not in known]
            stored[roots[-1]] = _merged(stored[roots[-1]], added, order)
        titles = [{key: group[key] for key in ("name",) if key in group} for group in optimizer.param_groups]
        title = f"optimizer {number} ({type(optimizer).__name__})"
        found.append(GroupNames(title, stored, current, roots, titles))
    return found


def _merged(group: list[str], added: list[str], order: Mapping[str, int]) -> list[str]:
    """A group with further members: in model order if it has that order, else at its end."""

    def place(name: str) -> int:
        return order.get(name, -1)  # a parameter that the model does not have stands first

    places = list(map(place, group))
    return sorted([*group, *added], key=place) if places == sorted(places) else [*group, *added]


def store_by_name(checkpoint: Checkpoint, groups: Sequence[GroupNames], trainer: TrainerLike) -> SavedState:
    """Give the optimizers and schedulers in a checkpoint the groups that the run's own code built.

    Args:
        checkpoint: With the state that Lightning will save.
        groups: Those of this run.
        trainer: The Trainer, with its schedulers.

    Returns:
        What `map_by_name` needs, in plain types: names and added groups of each optimizer, all schedulers;
        and, for a strategy that loads optimizers itself and gets them as they are, the names in all groups.
    """
    if not trainer.strategy.lightning_restore_optimizer:
        members = [each.current for each in groups]
        nothing = [None] * len(groups)
        return {"optimizers": nothing, "lr_schedulers": checkpoint["lr_schedulers"], "members": members}
    states, schedulers = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    records: list[SavedState | None] = [None] * len(states)
    chosen: dict[int, _Choice] = {}
    for index, (state, names) in enumerate(zip(states, groups, strict=False)):
        if not _is_regular(state, names.current):
            continue
        num_own = len(names.stored)
        added = zip(state["param_groups"][num_own:], names.current[num_own:], strict=True)
        records[index] = {
            "names": names.stored,
            "homes": names.homes[num_own:],
            "added": [{**_options(group), "params": members} for group, members in added],
        }
        states[index] = _regrouped(state, names.current, names.stored, state["param_groups"][:num_own])
        chosen[index] = len(names.current), range(num_own)
    checkpoint["lr_schedulers"] = _of_groups(schedulers, trainer, chosen)
    return {"optimizers": records, "lr_schedulers": schedulers}


def map_by_name(
    checkpoint: Checkpoint, saved: SavedState | None, groups: Sequence[GroupNames], trainer: TrainerLike
) -> list[str]:
    """Give the optimizers and schedulers in a checkpoint the groups of this run, before they are loaded.

    Args:
        checkpoint: What Lightning will load.
        saved: What `store_by_name` returned; None where no callback of ours, or an older version, saved it.
        groups: Those of this run.
        trainer: The Trainer, with its schedulers.

    Returns:
        Names of the parameters whose state has no place in this run.

    Raises:
        RuntimeError: The groups that the run's own code built are not those in the checkpoint.
    """
    states = checkpoint.get("optimizer_states", [])
    records = [None] * len(states) if saved is None else saved["optimizers"]
    chosen: dict[int, _Choice] = {}
    lost: list[str] = []
    for index, (state, names, record) in enumerate(zip(states, groups, records, strict=False)):
        record = record or _record_of(state, names)
        if record is None:
            continue
        _refuse_other_groups(record["names"], names)
        sources = [_source(number, names, record) for number in range(len(names.current))]
        options = [*state["param_groups"], *record["added"]]
        titled = zip(sources, names.titles, strict=True)
        options = [{**_options(options[source]), **title} for source, title in titled]
        lost += _lost(state, record["names"], names.current)
        states[index] = _regrouped(state, record["names"], names.current, options)
        chosen[index] = len(record["names"]) + len(record["added"]), sources
    schedulers = checkpoint.get("lr_schedulers", []) if saved is None else saved["lr_schedulers"]
    checkpoint["lr_schedulers"] = _of_groups(schedulers, trainer, chosen)
    return lost


def _is_regular(state: SavedState, names: Names) -> bool:
    """Whether a state is what torch's optimizers save for groups with so many parameters."""
    if state.keys() != {"state", "param_groups"}:
        return False
    numbers = [group["params"] for group in state["param_groups"]]
    everyone = list(chain(*numbers))
    is_numbered = everyone == list(range(len(everyone))) and set(state["state"]) <= {*everyone}
    return is_numbered and list(map(len, numbers)) == list(map(len, names))


def _record_of(state: SavedState, names: GroupNames) -> SavedState | None:
    """What a checkpoint without names would say of them; None where its groups are those of this run.

    Raises:
        RuntimeError: They are neither those of this run nor those without callbacks of ours.
    """
    if _is_regular(state, names.stored):
        return {"names": names.stored, "homes": [], "added": []}
    sizes = [len(group["params"]) for group in state.get("param_groups", ())]
    if sizes in ([], list(map(len, names.current))):  # empty: another rank saves it
        return None
    raise RuntimeError(
        f"The checkpoint does not name the parameters of {names.title}, whose groups have {_listed(sizes)} "
        f"of them there and {_listed(map(len, names.current))} in this run: resume with the Freezers, rates "
        "and groups of the run that saved it."
    )


def _refuse_other_groups(stored: Names, names: GroupNames) -> None:
    if len(stored) != len(names.stored):
        raise RuntimeError(
            f"In the checkpoint {names.title} has {len(stored)} parameter groups of its own, and "
            f"configure_optimizers now builds {len(names.stored)}, so that their options cannot be mapped: "
            "build the groups as the run did that saved it."
        )


def _source(number: int, names: GroupNames, record: SavedState) -> int:
    """Which group of a checkpoint has the options of a group: the same one, or the one it came from."""
    home = names.homes[number]
    if number < len(names.stored):
        return home
    wanted = home, names.current[number], names.titles[number]["name"]
    for index, (added, its_home) in enumerate(zip(record["added"], record["homes"], strict=True)):
        if (its_home, added["params"], added["name"]) == wanted:
            return len(record["names"]) + index
    return home


def _options(group: ParameterGroup) -> ParameterGroup:
    """What a group has besides its members; torch keeps the user's names for them when it loads."""
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _lost(state: SavedState, stored: Names, current: Names) -> list[str]:
    """Names of what has state and is in no group any more."""
    names, present = list(chain(*stored)), set(chain(*current))
    return [names[number] for number in state["state"] if names[number] not in present]


def _regrouped(
    state: SavedState, before: Names, after: Names, options: Sequence[ParameterGroup]
) -> SavedState:
    """The state of an optimizer whose parameters are in other groups, with these options."""
    names = list(chain(*before))
    numbers = {name: number for number, name in enumerate(chain(*after))}
    entries = {numbers[names[key]]: each for key, each in state["state"].items() if names[key] in numbers}
    groups = [
        {**_options(group), "params": [numbers[name] for name in members]}
        for group, members in zip(options, after, strict=True)
    ]
    return {"state": dict(sorted(entries.items())), "param_groups": groups}


def _of_groups(
    states: Sequence[SavedState], trainer: TrainerLike, chosen: Mapping[int, _Choice]
) -> list[SavedState]:
    """The states of schedulers, with an entry for each of the groups that are meant.

    Args:
        states: As the schedulers save them, one for each.
        trainer: The Trainer, which says whose optimizer each of them drives.
        chosen: Index of an optimizer -> its groups.
    """
    driven = [getattr(config.scheduler, "optimizer", None) for config in trainer.lr_scheduler_configs]
    indices = {id(optimizer): index for index, optimizer in enumerate(trainer.optimizers)}
    choices = [chosen.get(indices.get(id(optimizer), -1)) for optimizer in driven]
    return [
        state if choice is None else _entries(state, choice)
        for state, choice in zip(states, choices, strict=False)
    ]


def _entries(state: SavedState, choice: _Choice) -> SavedState:
    """The state of one scheduler and of its parts."""
    num_groups, sources = choice
    changed: dict[str, object] = {
        key: [state[key][source] for source in sources]
        for key in PER_GROUP
        if isinstance(state.get(key), list) and len(state[key]) == num_groups
    }
    if "_schedulers" in state:
        changed["_schedulers"] = [_entries(part, choice) for part in state["_schedulers"]]
    return {**state, **changed}


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sizes))
