"""Changes ranks of many layers together: layers of equal shapes are one stack of factors.

Shapes as in `resize.py`, with g layers in a stack. Stacked or alone, a layer gets the same values up to the
rounding of double precision.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers._log import log
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.parameter_swap import KnownGroups, groups_by_id, reshape_parameter
from lighter_freezers.lora.initial_factors import give_back, initial_factors
from lighter_freezers.lora.merging import merge_into_base
from lighter_freezers.lora.optimizer_state import Recombination, carry_states
from lighter_freezers.lora.rank_zero import shorten_forward
from lighter_freezers.lora.resize import Truncation, alpha_for, new_components, truncations
from lighter_freezers.lora.sites import LoraFactors

__all__ = ["OnZero", "RankChange", "RankRequest", "change_ranks", "fit_rank"]

OnZero = Literal["drop", "merge", "freeze"]

_HOLDER = "LoRA rank 0"
_LARGEST_STACK = 2**22  # elements of factors: 32 MiB in double precision; more layers gain nothing


@dataclass(frozen=True)
class RankRequest:
    """A layer and the rank it is to have; both were checked.

    Attributes:
        factors: What the layer learns.
        rank: The rank it is to have.
        generator: Where new components are drawn from; None for torch's own.
        statistics: S_z and S_g where the loss decides which components stay; see `truncated_by_loss`.
    """

    factors: LoraFactors
    rank: int
    generator: torch.Generator | None = None
    statistics: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class RankChange:
    """What a change of rank did.

    Attributes:
        rank_before: Components before.
        rank_after: Components now.
        num_kept: How many of these are made of the old ones; those after them are new.
        discarded: Frobenius norm of what the layer's weight update lost, its scaling included.
        is_merged: Whether the update became part of the base weight.
        frozen: Parameters that stop training with it.
        thawed: Parameters that train from now on.
        replaced: Old and new parameter, where torch did not allow to keep the object.
    """

    rank_before: int
    rank_after: int
    num_kept: int
    discarded: float = 0.0
    is_merged: bool = False
    frozen: tuple[Parameter, ...] = ()
    thawed: tuple[Parameter, ...] = ()
    replaced: tuple[tuple[Parameter, Parameter], ...] = ()


def change_ranks(
    requests: Sequence[RankRequest], on_zero: OnZero, optimizers: Iterable[Optimizer]
) -> list[RankChange]:
    """Give layers new ranks, in place.

    Args:
        requests: Each layer at most once.
        on_zero: What rank 0 means; a merge was checked.
        optimizers: Those whose state for the factors is to be carried along.

    Returns:
        What happened to each.
    """
    groups = groups_by_id(optimizers)
    changes: dict[int, RankChange] = {}
    stacks: dict[tuple[object, ...], list[int]] = {}
    thawed: dict[int, list[Parameter]] = {}
    for index, request in enumerate(requests):
        factors = request.factors
        parameters, rank = factors.parameters, factors.rank
        if request.rank == 0 and on_zero == "freeze":
            frozen = ledger.hold(parameters, _HOLDER)
            changes[index] = RankChange(rank, rank, rank, frozen=tuple(frozen))
            continue
        if is_merged := request.rank == 0 < rank and on_zero == "merge":
            merge_into_base(factors)
        thawed[index] = ledger.release(parameters, _HOLDER)
        changes[index] = RankChange(rank, request.rank, rank, is_merged=is_merged)
        if request.rank != rank:
            stacks.setdefault(_kind(request, parameters), []).append(index)
    for stack in stacks.values():
        for part in _parts(stack, requests[stack[0]].factors):
            resized = _resized([requests[index] for index in part], groups)
            for index, change in zip(part, resized, strict=True):
                is_merged = changes[index].is_merged
                discarded = 0.0 if is_merged else change.discarded
                changes[index] = replace(change, is_merged=is_merged, discarded=discarded)
    return [_with_thawed(changes[index], thawed.get(index, [])) for index in range(len(requests))]


def fit_rank(factors: LoraFactors, rank: int) -> None:
    """Give factors the shapes of a rank, whatever is in them: their values come from a checkpoint next."""
    A, B = factors.parameters
    num_components = max(rank, 1) if A.ndim > 2 else rank
    shapes = (num_components, *A.shape[1:]), (B.shape[0], num_components, *B.shape[2:])
    for (owner, name), shape in zip(factors.owners, shapes, strict=True):
        reshape_parameter(owner, name, torch.zeros(shape))
    _note_rank(factors, rank)


def _kind(request: RankRequest, parameters: tuple[Parameter, Parameter]) -> tuple[object, ...]:
    """What the layers of a stack have in common."""
    factors, (A, B) = request.factors, parameters
    initial = initial_factors(factors.layer, factors.adapter_name)
    return (
        *(factors.rank, request.rank, factors.zero_factor, A.shape, B.shape, A.dtype, B.dtype, A.device),
        None if initial is None else (initial[0].shape, initial[1].shape),
        _seen(request) is None,
    )


def _seen(request: RankRequest) -> tuple[Tensor, Tensor] | None:
    """The statistics of a request, unless nothing has been seen or the update is zero."""
    statistics = request.statistics
    return statistics if statistics and all(each.any() for each in statistics) else None


def _parts(stack: list[int], factors: LoraFactors) -> Iterator[list[int]]:
    """The layers of a stack, not more at a time than memory allows."""
    size = sum(parameter.numel() for parameter in factors.parameters)
    count = max(1, _LARGEST_STACK // max(size, 1))
    return (stack[first : first + count] for first in range(0, len(stack), count))


def _with_thawed(change: RankChange, thawed: Sequence[Parameter]) -> RankChange:
    if not thawed:
        return change
    successors = {id(old): new for old, new in change.replaced}
    return replace(change, thawed=tuple(successors.get(id(parameter), parameter) for parameter in thawed))


@torch.no_grad()
def _resized(stack: Sequence[RankRequest], groups: KnownGroups) -> list[RankChange]:
    """Change the ranks of layers of equal shapes."""
    first, rank = stack[0].factors, stack[0].rank
    if rank > first.rank:
        return _replaced(stack, None, groups)
    pairs = [request.factors.parameters for request in stack]
    A, B = (torch.stack(side).flatten(2) for side in zip(*pairs, strict=True))  # (g, r, n), (g, m, r)
    initials = (initial_factors(each.factors.layer, each.factors.adapter_name) for each in stack)
    taken = [pair for pair in initials if pair]
    seen = [statistics for each in stack if (statistics := _seen(each))]
    whole_A, whole_B = A, B
    if taken:  # what an adapter has learnt is B A - B0 A0
        A0, B0 = (torch.stack(side) for side in zip(*taken, strict=True))
        whole_A, whole_B = torch.cat([A, A0.to(A)], dim=1), torch.cat([B, -B0.to(B)], dim=2)
    S_z, S_g = (torch.stack(side) for side in zip(*seen, strict=True)) if seen else (None, None)
    cuts = truncations(whole_A, whole_B, rank, first.zero_factor, S_z, S_g)
    changes: dict[int, RankChange] = {}
    for chosen, cut in cuts:
        members = [stack[index] for index in chosen]
        if taken:
            for request in members:
                give_back(request.factors)
        resized = _replaced(members, cut, groups, are_mixed=not taken)
        changes.update(zip(chosen, resized, strict=True))
    return [changes[index] for index in range(len(stack))]


def _replaced(
    stack: Sequence[RankRequest], cut: Truncation | None, groups: KnownGroups, *, are_mixed: bool = True
) -> list[RankChange]:
    """Put components in place of the old ones, and new ones after them.

    Args:
        stack: Layers of equal shapes.
        cut: The components; None if they are the old ones.
        groups: Of the optimizers.
        are_mixed: Whether they are mixtures of the old ones alone, so that the optimizers' state can follow.
    """
    rank_before, rank = stack[0].factors.rank, stack[0].rank
    num_kept = 0 if not are_mixed else cut.A.shape[1] if cut else rank_before
    mixes = (cut.P.mT, cut.T) if cut and are_mixed else (None, None)
    kept = zip(cut.A.unbind(), cut.B.unbind(), strict=True) if cut else repeat(None)
    values = [_extended(request, pair) for request, pair in zip(stack, kept, strict=False)]
    owners = [request.factors.owners for request in stack]
    replaced: list[list[tuple[Parameter, Parameter]]] = [[] for _ in stack]
    for axis, mix in enumerate(mixes):
        parameters = []
        for pair, places, pairs in zip(values, owners, replaced, strict=True):
            owner, name = places[axis]
            if successor := reshape_parameter(owner, name, pair[axis], groups):
                pairs.append(successor)
            parameters.append(owner.get_parameter(name))
        change = Recombination(axis, mix, num_kept, rank - num_kept)
        for optimizer, known in groups.items():
            if not carry_states(parameters, change, optimizer, known):
                log.info("%s starts without state for LoRA factors of a new rank", type(optimizer).__name__)
    lost = cut.discarded.tolist() if cut else [0.0] * len(stack)
    for request in stack:
        _note_rank(request.factors, rank)
    return [
        RankChange(rank_before, rank, num_kept, abs(request.factors.scaling) * norm, replaced=tuple(pairs))
        for request, norm, pairs in zip(stack, lost, replaced, strict=True)
    ]


def _extended(request: RankRequest, kept: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Components and new ones after them, in memory of their own and the shapes of their parameters.

    No view of the parameters lives on, or they could not be swapped.
    """
    factors, rank = request.factors, request.rank
    old_A, old_B = factors.parameters
    m, n = factors.shape
    if not rank and old_A.ndim > 2:  # torch has no convolution without channels
        return torch.zeros(1, *old_A.shape[1:]), torch.zeros(m, 1, *old_B.shape[2:])
    A, B = kept or factors.matrices  # (k, n), (m, k)
    new_A, new_B = new_components(rank - len(A), n, m, factors.zero_factor, request.generator)
    A = torch.cat([A.to(old_A), new_A.to(old_A)])
    B = torch.cat([B.to(old_B), new_B.to(old_B)], dim=1)
    return A.reshape(rank, *old_A.shape[1:]), B.reshape(m, rank, *old_B.shape[2:])


def _note_rank(factors: LoraFactors, r: int) -> None:
    """Write the rank into PEFT's layer, so that alpha and rank still give its scaling."""
    layer, name = factors.layer, factors.adapter_name
    layer.r[name] = r
    if r:
        shorten_forward(layer, allowed=False)
        layer.lora_alpha[name] = alpha_for(factors.scaling, r, layer.use_rslora.get(name, False))
    if factors.is_embedding:
        return
    A, B = layer.lora_A[name], layer.lora_B[name]
    num_components = A.weight.shape[0]
    if isinstance(A, nn.Linear):
        A.out_features = B.in_features = num_components
    else:
        A.out_channels = B.in_channels = num_components
