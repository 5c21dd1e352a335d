"""One layer with LoRA, and the rank it has: growing, shrinking, rank 0 in three ways."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.parameter_swap import reshape_parameter
from lighter_freezers.lora.initial_factors import give_back, initial_factors
from lighter_freezers.lora.merging import check_merge, merge_into_base
from lighter_freezers.lora.optimizer_state import Recombination, carry_state
from lighter_freezers.lora.peft_view import note_ranks
from lighter_freezers.lora.rank_zero import shorten_forward
from lighter_freezers.lora.resize import Truncation, alpha_for, new_components, truncated, truncated_by_loss
from lighter_freezers.lora.sites import LoraFactors, PeftModule, why_unsupported

__all__ = [
    "OnZero",
    "RankChange",
    "Shrink",
    "check_rank",
    "check_shrink",
    "fit_rank",
    "resize_lora_layer",
]

OnZero = Literal["drop", "merge", "freeze"]
Shrink = Literal["svd", "kfac"]

_HOLDER = "LoRA rank 0"


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


def check_rank(layer: PeftModule, rank: object, adapter_name: str = "default") -> int:
    """Check that a layer with LoRA can have a rank.

    Raises:
        TypeError: It is not a whole number, or the layer is none of PEFT's with such an adapter.
        ValueError: It is negative, or larger than the layer's weight allows.
        RuntimeError: PEFT computes this layer in a way that depends on the rank.
    """
    if isinstance(rank, bool) or not isinstance(rank, int):
        hint = " Remove the quotes." if isinstance(rank, str) else ""
        raise TypeError(f"A LoRA rank must be a whole number. Got {rank!r} ({type(rank).__name__}).{hint}")
    known = [*getattr(layer, "lora_A", ()), *getattr(layer, "lora_embedding_A", ())]
    if adapter_name not in known:
        there = f"It has {', '.join(map(repr, known))}." if known else "It is no LoRA layer of PEFT."
        raise TypeError(f"{type(layer).__name__} has no adapter '{adapter_name}'. {there}")
    if reason := why_unsupported(layer, adapter_name):
        raise RuntimeError(f"The rank of this {type(layer).__name__} cannot change: {reason}.")
    m, n = LoraFactors(layer, adapter_name).shape
    if not 0 <= rank <= min(m, n):
        raise ValueError(
            f"LoRA rank {rank} is impossible here: the weight is {m} x {n}, so give 0 to {min(m, n)}."
        )
    return rank


@checked
def resize_lora_layer(
    layer: PeftModule,
    r: int,
    adapter_name: str = "default",
    *,
    on_zero: OnZero = "drop",
    shrink: Shrink = "svd",
    statistics: tuple[Tensor, Tensor] | None = None,
    model: nn.Module | None = None,
    optimizers: Iterable[Optimizer] = (),
    generator: torch.Generator | None = None,
) -> RankChange:
    """Change the rank of one LoRA layer of PEFT, in place: Linear, Conv1D, Embedding, Conv1d to Conv3d.

    Plain LoRA, rsLoRA and DoRA. Where the initialisation took a part of the base weight (PiSSA, OLoRA, CorDA,
    LoRA-GA), a lower rank gives it back and keeps what can be kept of what was learnt. The scaling of the
    update stays what it is (`lora_alpha` follows the rank), magnitudes of DoRA stay what they are, and the
    flags and holders of the parameters too.

    | from 8 to | what happens to the layer's function |
    |---|---|
    | 16 | nothing: new components begin at zero, with a gradient |
    | 4 | the best approximation of the update with 4 components |
    | 0, `drop` | the update is gone |
    | 0, `merge` | nothing: the update becomes part of the base weight |
    | 0, `freeze` | nothing: the components stay, held frozen until the next change of rank |

    Args:
        layer: A layer of PEFT with this adapter.
        r: The new rank.
        adapter_name: PEFT's name of the adapter. Others of the same layer are left alone.
        on_zero: What rank 0 means.
        shrink: `svd` changes the weight least, `kfac` the loss, as far as `statistics` can tell.
        statistics: For `kfac`, the means of z z^T and g g^T, (r, r) each: see `truncated_by_loss`.
        model: The model around the layer, whose config of PEFT is to follow; `merge` has to see whether
            something else uses the weight. None: call `set_layer_lora_rank`, or give it for the last layer.
        optimizers: Those whose state for the factors is to be carried along. To be called between steps.
        generator: Where new components are drawn from, on the CPU. None for torch's own.

    Raises:
        TypeError: The rank is not a whole number, or the layer has no such adapter.
        ValueError: The rank is impossible, or an argument is missing.
        RuntimeError: The layer's class or state does not allow it: a merged adapter, or `merge` into a weight
            that is tied or quantised.

    Example:
        ```python
        import torch
        from peft import LoraConfig
        from lighter_freezers import GPT, apply_lora, resize_lora_layer

        model = apply_lora(GPT({"n_layer": 2}), LoraConfig(r=4, target_modules=["c_attn"]))
        optimizer = torch.optim.AdamW(model.parameters())
        layer = model.transformer.h[0].attn.c_attn
        resize_lora_layer(layer, 16, optimizers=[optimizer])
        ```
    """
    check_rank(layer, r, adapter_name)
    if adapter_name in layer.merged_adapters:
        raise RuntimeError(f"The adapter '{adapter_name}' is merged: call `unmerge` before its rank changes.")
    factors = LoraFactors(layer, adapter_name)
    check_shrink(factors, shrink)
    if shrink == "kfac" and 0 < r < factors.rank and statistics is None:
        raise ValueError(
            "shrink='kfac' needs statistics, or the callback, which collects them. Or use 'svd'."
        )
    if r == 0 and on_zero == "freeze":
        frozen = ledger.hold(factors.parameters, _HOLDER)
        return RankChange(factors.rank, factors.rank, factors.rank, frozen=tuple(frozen))
    is_merged = r == 0 and on_zero == "merge" and factors.rank > 0
    if is_merged:
        check_merge(factors, model)
        merge_into_base(factors)
    thawed = ledger.release(factors.parameters, _HOLDER)
    if r == factors.rank:
        return RankChange(r, r, r, thawed=tuple(thawed))
    change = _resize(factors, r, statistics if shrink == "kfac" else None, list(optimizers), generator)
    if model is not None:
        note_ranks(model)
    successors = {id(old): new for old, new in change.replaced}
    thawed = [successors.get(id(parameter), parameter) for parameter in thawed]
    return replace(
        change,
        thawed=tuple(thawed),
        is_merged=is_merged,
        discarded=0.0 if is_merged else change.discarded,
    )


def fit_rank(factors: LoraFactors, rank: int) -> None:
    """Give factors the shapes of a rank, whatever is in them: their values come from a checkpoint next."""
    A, B = factors.parameters
    num_components = max(rank, 1) if A.ndim > 2 else rank
    shapes = (num_components, *A.shape[1:]), (B.shape[0], num_components, *B.shape[2:])
    for (owner, name), shape in zip(factors.owners, shapes, strict=True):
        reshape_parameter(owner, name, torch.zeros(shape))
    _note_rank(factors, rank)


def check_shrink(factors: LoraFactors, shrink: Shrink) -> None:
    """Raise where components cannot be chosen in this way.

    Raises:
        ValueError: `kfac` does not know DoRA, nor factors that took a part of the base weight.
    """
    if shrink == "kfac" and initial_factors(factors.layer, factors.adapter_name):
        raise ValueError(
            "shrink='kfac' does not know initialisations that move a part of the base weight into the "
            "factors, such as PiSSA: use shrink='svd'."
        )
    if shrink == "kfac" and factors.adapter_name in factors.layer.lora_magnitude_vector:
        raise ValueError("shrink='kfac' does not support DoRA: use shrink='svd'.")


def _resize(
    factors: LoraFactors,
    r: int,
    statistics: tuple[Tensor, Tensor] | None,
    optimizers: list[Optimizer],
    generator: torch.Generator | None,
) -> RankChange:
    rank_before, scaling = factors.rank, factors.scaling
    initial = initial_factors(factors.layer, factors.adapter_name)
    A, B, cut = _new_values(factors, r, statistics, generator)
    num_kept = len(cut.A) if cut else rank_before
    replaced = []
    mixes = (cut.P.T, cut.T) if cut else (None, None)
    if cut and initial:  # the new components are no mixture of the old ones alone
        num_kept, mixes = 0, (None, None)
        give_back(factors)
    for axis, ((owner, name), value, mix) in enumerate(zip(factors.owners, (A, B), mixes, strict=True)):
        if pair := reshape_parameter(owner, name, value, optimizers):
            replaced.append(pair)
        change = Recombination(axis, mix, num_kept, r - num_kept)
        for optimizer in optimizers:
            if not carry_state(factors.parameters[axis], change, optimizer):
                log.info("%s starts without state for LoRA factors of a new rank", type(optimizer).__name__)
    _note_rank(factors, r)
    lost = abs(scaling) * cut.discarded if cut else 0.0
    return RankChange(rank_before, r, num_kept, discarded=lost, replaced=tuple(replaced))


@torch.no_grad()
def _new_values(
    factors: LoraFactors,
    r: int,
    statistics: tuple[Tensor, Tensor] | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Truncation | None]:
    """A and B of the new rank in the shapes of their parameters. No view of the old ones lives on."""
    A, B = factors.matrices  # (r, n), (m, r)
    m, n = factors.shape
    cut = None
    if r < factors.rank:
        zero = factors.zero_factor
        if initial := initial_factors(factors.layer, factors.adapter_name):
            A, B = torch.cat([A, initial[0].to(A)]), torch.cat([B, -initial[1].to(B)], dim=1)
        cut = truncated_by_loss(A, B, r, *statistics, zero) if statistics else truncated(A, B, r, zero)
        A, B = cut.A.to(A), cut.B.to(B)
    new_A, new_B = new_components(r - len(A), n, m, factors.zero_factor, generator)
    A, B = torch.cat([A, new_A.to(A)]), torch.cat([B, new_B.to(B)], dim=1)
    old_A, old_B = factors.parameters
    if not r and old_A.ndim > 2:  # torch has no convolution without channels
        A, B = A.new_zeros(1, n), B.new_zeros(m, 1)
    A, B = A.reshape(-1, *old_A.shape[1:]), B.reshape(m, -1, *old_B.shape[2:])
    return A, B, cut


def _note_rank(factors: LoraFactors, r: int) -> None:
    """Write the rank into PEFT's layer, so that alpha and rank still give its scaling."""
    layer, name = factors.layer, factors.adapter_name
    layer.r[name] = r
    if r:
        shorten_forward(layer, allowed=False)
        layer.lora_alpha[name] = alpha_for(factors.scaling, r, layer.use_rslora.get(name, False))
    if factors.is_embedding:
        return
    num_components = factors.parameters[0].shape[0]
    if isinstance(layer.lora_A[name], nn.Linear):
        layer.lora_A[name].out_features = layer.lora_B[name].in_features = num_components
    else:
        layer.lora_A[name].out_channels = layer.lora_B[name].in_channels = num_components
