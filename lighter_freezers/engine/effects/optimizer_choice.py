"""Which optimizer takes a thawing parameter that none knows: that of its neighbours, if it accepts it."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

__all__ = ["accepting_groups", "choose_optimizer", "common_length", "described", "sparse_parameters"]

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
    # torch's Muon takes matrices; others flatten convolutions too, and have groups for what is no matrix
    is_matrix = parameter.ndim == 2 or (parameter.ndim > 2 and not is_torch)
    return [index for index, group in enumerate(groups) if group.get("use_muon", True) == is_matrix]


def choose_optimizer(
    name: str,
    names: Mapping[int, str],
    optimizers: Sequence[Optimizer],
    candidates: Sequence[int],
    asked: int | str | None = None,
) -> int | None:
    """Decide by who trains the neighbours of a parameter in the module tree.

    Args:
        name: Its canonical name.
        names: Id -> name of every parameter of the model.
        optimizers: The Trainer's optimizers.
        candidates: Indices of those that accept the parameter; at least one.
        asked: Index, class name, or a module trained by the optimizer that the user wants.

    Returns:
        Its index; None where several are equally near.
    """
    if len(candidates) == 1:
        return candidates[0]
    wanted = [index for index in _named(asked, names, optimizers) if index in candidates]
    if len(wanted) == 1:
        return wanted[0]
    neighbours = [
        (common_length(name, other), other, index)
        for index in candidates
        for other in _members(optimizers[index], names)
    ]
    depth = max((depth for depth, _, _ in neighbours), default=0)
    near = {index for shared, _, index in neighbours if shared == depth}
    if len(near) > 1:  # the same parameter of another block, such as `h.1.attn.weight` for `h.0.attn.weight`
        twins = {index for _, other, index in neighbours if _unnumbered(other) == _unnumbered(name)}
        near = twins & near
    return near.pop() if len(near) == 1 else None


def described(optimizers: Sequence[Optimizer], names: Mapping[int, str]) -> str:
    """The optimizers in words: `0 (Adam: decoder.weight and 3 more)`."""
    return ", ".join(
        f"{index} ({type(optimizer).__name__}: {_shown(_members(optimizer, names))})"
        for index, optimizer in enumerate(optimizers)
    )


def _named(asked: int | str | None, names: Mapping[int, str], optimizers: Sequence[Optimizer]) -> list[int]:
    """The optimizers that an index, a class name or a module stands for.

    Raises:
        ValueError: There is none, or a class name stands for several.
    """
    if asked is None:
        return []
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


def common_length(name: str, other: str) -> int:
    """How many leading segments two dotted names share."""
    length = 0
    for part, other_part in zip(name.split("."), other.split("."), strict=False):
        if part != other_part:
            break
        length += 1
    return length
