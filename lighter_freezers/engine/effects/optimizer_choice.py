"""Chooses the optimizer for a parameter that will thaw but is in none: that of its neighbours, if it fits."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.selection.element_counts import num_dimensions

__all__ = ["Neighbours", "accepting_groups", "described", "sparse_parameters"]

_TAKES_SPARSE = (torch.optim.SGD, torch.optim.SparseAdam, torch.optim.Adagrad)


def sparse_parameters(model: nn.Module) -> set[int]:
    """Ids of the embedding weights whose gradients are sparse."""
    return {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
    }


def accepting_groups(optimizer: Optimizer, parameter: Parameter, is_sparse: bool) -> list[int]:
    """Indices of the groups of an optimizer that can train a parameter of this shape and kind of gradient."""
    is_torch = type(optimizer).__module__.split(".")[:2] == ["torch", "optim"]
    if is_sparse and is_torch and not isinstance(optimizer, _TAKES_SPARSE):
        return []
    if not is_sparse and isinstance(optimizer, torch.optim.SparseAdam):
        return []
    groups = optimizer.param_groups
    if "muon" not in type(optimizer).__name__.lower():
        return list(range(len(groups)))
    # torch's Muon takes matrices; others flatten convolutions too, and have groups for non-matrices
    dimensions = num_dimensions(parameter)
    is_matrix = dimensions == 2 or (dimensions > 2 and not is_torch)
    return [index for index, group in enumerate(groups) if group.get("use_muon", True) == is_matrix]


class Neighbours:
    """Which optimizers and groups train the neighbours of a parameter in the module tree.

    Args:
        optimizers: The Trainer's optimizers.
        names: Id -> name of every parameter of the model.
    """

    def __init__(self, optimizers: Sequence[Optimizer], names: Mapping[int, str]) -> None:
        self._optimizers = optimizers
        self._names = names
        # prefix -> optimizer, group, whether a matrix; ordered as a set is not
        self._below: dict[str, dict[tuple[int, int, bool], None]] = {}
        self._twins: dict[str, set[int]] = {}  # name without block numbers -> optimizers
        self._asked: dict[int | str, list[int]] = {}
        for index, optimizer in enumerate(optimizers):
            for group_index, group in enumerate(optimizer.param_groups):
                for parameter in group["params"]:
                    name = names.get(id(parameter), "")
                    self._twins.setdefault(_unnumbered(name), set()).add(index)
                    for prefix in _prefixes(name):
                        place = (index, group_index, num_dimensions(parameter) > 1)
                        self._below.setdefault(prefix, {})[place] = None

    def optimizer(self, name: str, candidates: Sequence[int], asked: int | str | None = None) -> int | None:
        """Choose the optimizer of the nearest neighbours.

        Args:
            name: Canonical name of the parameter.
            candidates: Indices of the optimizers that accept it; at least one.
            asked: Index, class name, or a module trained by the optimizer that the user wants.

        Returns:
            Its index; None where several are equally near.
        """
        if asked is not None and asked not in self._asked:  # a name that means none is an error in any case
            self._asked[asked] = _named(asked, self._names, self._optimizers)
        if len(candidates) == 1:
            return candidates[0]
        wanted = [index for index in self._asked[asked] if index in candidates] if asked is not None else []
        if wanted:
            return wanted[0]
        nearest = ({place[0] for place in self._below.get(prefix, ())} for prefix in _prefixes(name))
        near = next((each for each in nearest if not each.isdisjoint(candidates)), set()) & {*candidates}
        if len(near) > 1:  # the same parameter of another block: `h.1.attn.weight` for `h.0.attn.weight`
            near &= self._twins.get(_unnumbered(name), set())
        return near.pop() if len(near) == 1 else None

    def group(self, name: str, parameter: Parameter, optimizer: int, accepting: Sequence[int]) -> int:
        """Choose the group of the nearest neighbour, preferably one with the same number of dimensions.

        Args:
            name: Canonical name of the parameter.
            parameter: What gets a group.
            optimizer: Index of its optimizer.
            accepting: Indices of that optimizer's groups which can train it, in ascending order.
        """
        for prefix in _prefixes(name):
            near = [place[1:] for place in self._below.get(prefix, ()) if place[0] == optimizer]
            near = [(group, is_matrix) for group, is_matrix in near if group in accepting]
            alike = [group for group, is_matrix in near if is_matrix == (num_dimensions(parameter) > 1)]
            if near:
                return min(alike or [group for group, _ in near])
        return accepting[0]


def described(optimizers: Sequence[Optimizer], names: Mapping[int, str]) -> str:
    """The optimizers in words: `0 (Adam: decoder.weight and 3 more)`."""
    return ", ".join(
        f"{index} ({type(optimizer).__name__}: {_shown(_members(optimizer, names))})"
        for index, optimizer in enumerate(optimizers)
    )


def _named(asked: int | str, names: Mapping[int, str], optimizers: Sequence[Optimizer]) -> list[int]:
    """The optimizers that an index, a class name or a module refers to.

    Raises:
        ValueError: There is none, or a class name stands for several.
    """
    indices = range(len(optimizers))
    if isinstance(asked, int):
        found = [index for index in indices if index == asked]
    else:
        found = [index for index in indices if type(optimizers[index]).__name__ == asked] or [
            index
            for index in indices
            if any(f".{asked}." in f".{each}." for each in _members(optimizers[index], names))
        ]
    if len(found) == 1:
        return found
    raise ValueError(
        f"optimizer={asked!r} stands for {len(found) or 'none'} of the run's optimizers: "
        f"{described(optimizers, names)}. Write the number of one of them, or a module that it alone trains."
    )


def _members(optimizer: Optimizer, names: Mapping[int, str]) -> list[str]:
    return [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]


def _shown(members: Sequence[str]) -> str:
    named = [member for member in members if member]
    first = next(iter(named), "no parameter of the model")
    return first + (f" and {len(members) - 1} more" if len(members) > 1 else "")


def _unnumbered(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", f".{name}")


def _prefixes(name: str) -> list[str]:
    """A dotted name and what it starts with, the longest first, down to nothing."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)] + [""]
