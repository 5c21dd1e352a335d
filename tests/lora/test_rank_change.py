"""Layers of equal shapes whose ranks change together, against the same layers one by one."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import apply_lora, resize_lora_layer
from lighter_freezers.lora import rank_change
from lighter_freezers.lora.set_rank import resize_sites
from lighter_freezers.lora.sites import find_lora_sites


def network(num_layers: int = 4) -> nn.Module:
    """Layers of equal shapes, and one of another; the last of the equal ones has learnt nothing."""
    torch.manual_seed(0)
    layers = [*(nn.Linear(12, 12) for _ in range(num_layers)), nn.Linear(12, 8)]
    model = apply_lora(nn.Sequential(*layers), {"r": 4, "target_modules": [str(i) for i in range(5)]})
    with torch.no_grad():
        for site in list(find_lora_sites(model).values())[: num_layers - 1]:
            site.factors.parameters[1].normal_()
    return model


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with moments for all factors."""
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    for seed in (1, 2):
        model(torch.randn(3, 12, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for site in list(find_lora_sites(model).values())[3:4]:  # so that its rank is 0 after two steps too
        site.factors.parameters[1].data.zero_()
    return optimizer


@pytest.mark.parametrize("largest", [2**22, 200, 1])
@pytest.mark.parametrize("rank", [6, 4, 2, 0])
def test_together_is_one_by_one(rank: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors, moments and what is reported, in stacks of any size; a layer that keeps less is among them."""
    monkeypatch.setattr(rank_change, "_LARGEST_STACK", largest)
    together = network()
    memory = stepped(together)
    alone, memory_alone = copy.deepcopy((together, memory))
    sites, sites_alone = find_lora_sites(together), find_lora_sites(alone)
    changes = resize_sites(together, dict.fromkeys(sites, rank), sites, optimizers=[memory], seed="seed")
    for (site, change), (name, other) in zip(changes, sites_alone.items(), strict=True):
        generator = rank_generator("seed", name)
        single: Any = resize_lora_layer(
            other.factors.layer, rank, optimizers=[memory_alone], generator=generator
        )

        assert (change.rank_before, change.rank_after, change.num_kept) == (4, rank, single.num_kept)
        assert change.discarded == pytest.approx(single.discarded, rel=1e-9)
        for mine, its in zip(site.factors.parameters, other.factors.parameters, strict=True):
            assert torch.allclose(mine, its, rtol=1e-6, atol=1e-7)
            assert mine.untyped_storage().nbytes() == mine.numel() * mine.element_size()
            assert memory.state[mine].keys() == memory_alone.state[its].keys()
            for key, value in memory.state[mine].items():
                assert torch.allclose(value, memory_alone.state[its][key], rtol=1e-5, atol=1e-9)
                assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    assert rank != 2 or [change.num_kept for _, change in changes] == [2, 2, 2, 0, 2]


def rank_generator(seed: str, name: str) -> torch.Generator | None:
    """That of a layer when the ranks of many change."""
    from lighter_freezers.lora.resize import generator_for

    return generator_for(seed, name)


def test_all_or_none() -> None:
    """An impossible rank for the last layer leaves the others as they are."""
    model = network()
    sites = find_lora_sites(model)
    with pytest.raises(ValueError, match="LoRA rank 9 is impossible"):
        resize_sites(model, dict.fromkeys(sites, 9), sites)

    assert {site.factors.rank for site in sites.values()} == {4}
