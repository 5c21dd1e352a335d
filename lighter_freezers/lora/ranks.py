"""One layer with LoRA, and the rank it has: growing, shrinking, rank 0 in three ways."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lighter_freezers.arguments import checked
from lighter_freezers.lora.initial_factors import initial_factors
from lighter_freezers.lora.merging import check_merge
from lighter_freezers.lora.peft_view import note_ranks
from lighter_freezers.lora.rank_change import OnZero, RankChange, RankRequest, change_ranks
from lighter_freezers.lora.sites import LoraFactors, PeftModule, why_unsupported

__all__ = ["Shrink", "check_rank", "check_shrink", "request_rank", "resize_lora_layer"]

Shrink = Literal["svd", "kfac"]


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
    request = request_rank(
        layer,
        r,
        adapter_name,
        on_zero=on_zero,
        shrink=shrink,
        statistics=statistics,
        model=model,
        generator=generator,
    )
    [change] = change_ranks([request], on_zero, optimizers)
    if model is not None and change.rank_after != change.rank_before:
        note_ranks(model)
    return change


def request_rank(
    layer: PeftModule,
    r: int,
    adapter_name: str,
    *,
    on_zero: OnZero,
    shrink: Shrink,
    statistics: tuple[Tensor, Tensor] | None,
    model: nn.Module | None,
    generator: torch.Generator | None,
) -> RankRequest:
    """The arguments of `resize_lora_layer`, checked: see there."""
    check_rank(layer, r, adapter_name)
    if adapter_name in layer.merged_adapters:
        raise RuntimeError(f"The adapter '{adapter_name}' is merged: call `unmerge` before its rank changes.")
    factors = LoraFactors(layer, adapter_name)
    check_shrink(factors, shrink)
    if shrink == "kfac" and 0 < r < factors.rank and statistics is None:
        raise ValueError(
            "shrink='kfac' needs statistics, or the callback, which collects them. Or use 'svd'."
        )
    if r == 0 < factors.rank and on_zero == "merge":
        check_merge(factors, model)
    return RankRequest(factors, r, generator, statistics if shrink == "kfac" else None)


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
