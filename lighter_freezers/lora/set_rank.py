"""LoRA ranks by the short names of layers: set and check. No Trainer, and no checkpoint."""

import sys
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.compiled_graphs import is_compiled
from lighter_freezers.lora.attach import prepare_lora_layers, single_layers, targets_in
from lighter_freezers.lora.initial_factors import note_initial_factors
from lighter_freezers.lora.merging import check_merge
from lighter_freezers.lora.optimizer_state import NewComponents
from lighter_freezers.lora.peft_configs import refuse_other_tuners, usual_adapter
from lighter_freezers.lora.peft_view import note_ranks
from lighter_freezers.lora.rank_change import OnZero, RankChange, change_ranks
from lighter_freezers.lora.ranks import Shrink, check_rank, request_rank
from lighter_freezers.lora.resize import generator_for
from lighter_freezers.lora.sites import (
    LoraSite,
    find_lora_sites,
    lora_layers,
    matches_pattern,
    select_sites,
    why_unsupported,
)
from lighter_freezers.selection.names import each_module

__all__ = ["check_layer_lora_rank", "hold_bases", "resize_sites", "set_layer_lora_rank"]

_HOLDER = "LoRA"  # holds the weights below adapters that `set_layer_lora_rank` made


@checked
def set_layer_lora_rank(
    model: nn.Module,
    layer: str,
    rank: int,
    *,
    adapter_name: str | None = None,
    on_zero: OnZero = "merge",
    optimizers: Iterable[Optimizer] = (),
    new_components: NewComponents | None = None,
    seed: str | None = None,
) -> list[tuple[LoraSite, RankChange]]:
    """Set the LoRA rank of a layer by its short name; where there is no LoRA yet, it gets it.

    | call | what happens |
    |---|---|
    | `set_layer_lora_rank(model, "attn.3", 16)` | rank 16 for what makes queries, keys and values there |
    | `set_layer_lora_rank(model, "wte", 8)` | rank 8 for the token embeddings |
    | `set_layer_lora_rank(model, "attn.1", 0)` | the update becomes part of the weight, which trains again |
    | `set_layer_lora_rank(model, "wte", 0, on_zero="drop")` | it is gone; the weight trains again |

    The weight below an adapter is held frozen while the rank is above 0.

    Args:
        model: A network, or a LightningModule around one.
        layer: `attn.N`, `mlp.N`, `block.N` (N may be `0-3` or `*`), `wte`, `lm_head`; or, for layers that
            have LoRA, a key of PEFT's `rank_pattern`.
        rank: Its new rank. An adapter that is new has scaling 1.
        adapter_name: PEFT's name of the adapter. None for `default`, or for the only one there is.
        on_zero: What rank 0 means: see `resize_lora_layer`.
        optimizers: Those that know the factors, to be called between their steps.
        new_components: Notes new components, whose moments are to begin with their first gradient.
        seed: Names the draw of new components, so that every process makes the same. None for torch's own
            generator.

    Returns:
        Each layer of the model that this is about, and what happened to it. Empty where rank 0 was asked for
        and there is no LoRA.

    Raises:
        TypeError: The rank is not a whole number.
        ValueError: There is no such layer, or it cannot have this rank.
        RuntimeError: `merge` into a weight that is tied or quantised, or a layer whose rank cannot change.

    Example:
        ```python
        from lighter_freezers import GPT, set_layer_lora_rank

        model = GPT({"n_layer": 4})
        set_layer_lora_rank(model, "attn.3", 16)
        ```
    """
    adapter_name = adapter_name or usual_adapter(model)
    check_layer_lora_rank(model, layer, rank, adapter_name=adapter_name, on_zero=on_zero)
    if rank:
        prepare_lora_layers(model, [layer], adapter_name)
    chosen = _chosen(model, layer, adapter_name)
    if not chosen:
        log.warning("%s has no LoRA, so its rank is 0 already", layer)
    changes = resize_sites(
        model,
        dict.fromkeys((site.name for site in chosen), rank),
        {site.name: site for site in chosen},
        on_zero=on_zero,
        optimizers=optimizers,
        new_components=new_components,
        seed=seed,
    )
    hold_bases(model, adapter_name)
    return changes


def hold_bases(model: nn.Module, adapter_name: str | None = None) -> None:
    """Hold the weights below adapters that were put there layer by layer while these have components.

    `set_layer_lora_rank` does this by itself; a resumed run has to do it after the ranks are loaded.
    """
    for site in find_lora_sites(model, adapter_name).values():
        if not getattr(site.factors.layer, "is_attached", False):
            continue
        own = list(site.factors.layer.get_base_layer().parameters(recurse=False))
        if site.factors.rank:
            ledger.hold(own, _HOLDER)
        else:
            ledger.release(own, _HOLDER)


def check_layer_lora_rank(
    model: nn.Module,
    layer: str,
    rank: object,
    *,
    adapter_name: str | None = None,
    on_zero: OnZero = "merge",
) -> None:
    """Raise what `set_layer_lora_rank` would raise; the model stays as it is.

    Raises:
        TypeError: The rank is not a whole number.
        ValueError: There is no such layer, or it cannot have this rank.
        RuntimeError: `merge` into a weight that is tied or quantised, or a layer whose rank cannot change.
    """
    refuse_other_tuners(model)
    note_initial_factors(model)
    adapter_name = adapter_name or usual_adapter(model)
    for path, adapted in lora_layers(model, adapter_name).items():
        if matches_pattern(layer, path) and (reason := why_unsupported(adapted, adapter_name)):
            raise ValueError(f"The rank of '{path}' cannot change: {reason}.")
    for name in single_layers(model, layer):
        sites = _sites_in(model, name, adapter_name)
        for site in sites:
            check_rank(site.factors.layer, rank, adapter_name)
            if rank == 0 and on_zero == "merge":
                check_merge(site.factors, model)
        if not sites:
            _check_plain_rank(model, name, rank, adapter_name)


def _check_plain_rank(model: nn.Module, layer: str, rank: object, adapter_name: str) -> None:
    """The same for a layer without LoRA."""
    for target in targets_in(model, layer, adapter_name):
        sizes = target.get_parameter("weight").shape
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise TypeError(f"A LoRA rank must be a whole number. Got {rank!r} ({type(rank).__name__}).")
        if not 0 <= rank <= min(sizes):
            raise ValueError(
                f"LoRA rank {rank} is impossible for '{layer}': a weight there is {sizes[0]} x {sizes[1]}, "
                f"so give 0 to {min(sizes)}."
            )


def resize_sites(
    model: nn.Module,
    ranks: Mapping[str, int],
    sites: Mapping[str, LoraSite],
    *,
    on_zero: OnZero = "drop",
    shrink: Shrink = "svd",
    statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    optimizers: Iterable[Optimizer] = (),
    new_components: NewComponents | None = None,
    seed: str | None = None,
) -> list[tuple[LoraSite, RankChange]]:
    """Give layers with LoRA new ranks: all of them, or, where one is impossible, none.

    Args:
        model: The model they are in.
        ranks: Name of a site -> its new rank.
        sites: Name -> site.
        on_zero: As for `resize_lora_layer`.
        shrink: As for `resize_lora_layer`.
        statistics: Name of a site -> what `kfac` needs.
        optimizers: Those that know the factors.
        new_components: Notes new components.
        seed: Of the initial values of new components. None for torch's own generator.

    Returns:
        Each of them, and what happened to it.
    """
    requests = [
        request_rank(
            sites[name].factors.layer,
            rank,
            sites[name].factors.adapter_name,
            on_zero=on_zero,
            shrink=shrink,
            statistics=(statistics or {}).get(name),
            model=model,
            generator=generator_for(seed, name),
        )
        for name, rank in ranks.items()
    ]
    done = change_ranks(requests, on_zero, optimizers)
    changes = [(sites[name], change) for name, change in zip(ranks, done, strict=True)]
    if new_components is not None:
        for site, change in changes:
            new_components.expect(site, change.num_kept)
    if any(change.rank_before != change.rank_after for _, change in changes):
        note_ranks(model)
        _forget_compiled(model)
    return changes


def _chosen(model: nn.Module, layer: str, adapter_name: str) -> list[LoraSite]:
    """The layers with LoRA that a name means; none where there is no LoRA."""
    names = single_layers(model, layer)
    return list({site.name: site for name in names for site in _sites_in(model, name, adapter_name)}.values())


def _sites_in(model: nn.Module, layer: str, adapter_name: str) -> list[LoraSite]:
    sites = find_lora_sites(model, adapter_name)
    try:
        return select_sites(model, sites, layer) if sites else []
    except ValueError:
        targets_in(model, layer, adapter_name)  # an unknown name is still an error
        return []


def _forget_compiled(model: nn.Module) -> None:
    """Drop compiled code: torch would keep one graph per rank, and stop compiling at its limit."""
    if "torch._dynamo" in sys.modules and any(map(is_compiled, each_module(model))):
        torch.compiler.reset()
