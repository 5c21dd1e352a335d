"""Merges LoRA into the base weights and restarts it, at the same ranks."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from lighter_freezers.engine.effects.optimizer_groups import forget_state
from lighter_freezers.lora.merging import check_merge, merge_into_base
from lighter_freezers.lora.peft_configs import refuse_other_tuners
from lighter_freezers.lora.resize import generator_for, new_components
from lighter_freezers.lora.sites import LoraSite, find_lora_sites, select_sites

__all__ = ["merge_lora_weights"]


@torch.no_grad()
def merge_lora_weights(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    *,
    optimizers: Iterable[Optimizer] = (),
    seed: str | None = None,
) -> list[str]:
    """Merge LoRA updates into the base weights, and restart LoRA at the same ranks.

    It is the step of ReLoRA (arXiv 2307.05695).

    Args:
        model: A network, or a LightningModule around one.
        layers: Short names, as for `set_layer_lora_rank`. None for every layer with LoRA.
        optimizers: Their state of the factors is dropped.
        seed: Of the initial values of new components. None for torch's own generator.

    Returns:
        The titles of the layers that were merged.

    Raises:
        ValueError: A layer has no LoRA.
        RuntimeError: A weight is tied or quantised.
    """
    refuse_other_tuners(model)
    every = find_lora_sites(model)
    patterns = list(layers) if layers is not None else []
    chosen = {site.name: site for pattern in patterns for site in select_sites(model, every, pattern)}
    sites = [site for site in (every if layers is None else chosen).values() if site.factors.rank]
    for site in sites:
        check_merge(site.factors, model)
    for site in sites:
        merge_into_base(site.factors)
        _restart(site, list(optimizers), generator_for(seed, site.name))
    return [site.title for site in sites]


def _restart(site: LoraSite, optimizers: list[Optimizer], generator: torch.Generator | None) -> None:
    A, B = site.factors.parameters
    m, n = site.factors.shape
    rows, columns = new_components(site.factors.rank, n, m, site.factors.zero_factor, generator)
    A.copy_(rows.reshape(A.shape))
    B.copy_(columns.reshape(B.shape))
    forget_state([A, B], optimizers)
