"""`rank_pattern` and `alpha_pattern` as PEFT reads them, with zeros, short names and errors."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from lighter_freezers import GPT, apply_lora
from lighter_freezers.lora.sites import find_lora_sites

SIZES = {"vocab_size": 64, "block_size": 16, "n_layer": 3, "n_head": 2, "n_embd": 16}


class Blocks(nn.Module):
    """Three layers whose names end alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(8, 8)}) for _ in range(3))


def found(network: nn.Module) -> list[tuple[int, float]]:
    sites = find_lora_sites(network).values()
    return [(site.factors.rank, site.factors.scaling) for site in sites]


@pytest.mark.parametrize(
    ("pattern", "ranks"),
    [
        ({"layers.1.q": 4, "q": 0}, [0, 4, 0]),
        ({"q": 0, "layers.1.q": 4}, [0, 0, 0]),
        ({"layers.1.q": 0, "q": 2}, [2, 0, 2]),
        ({r"layers\.[12]\.q": 3, ".*": 5}, [5, 3, 3]),
        ({"^layers.0.q": 0}, [0, 8, 8]),
    ],
)
def test_the_first_key_that_matches_counts(pattern: dict[str, int], ranks: list[int]) -> None:
    """As in PEFT, 0 included; alphas alike."""
    config = {"r": 8, "lora_alpha": 8, "target_modules": ["q"]}
    network = apply_lora(Blocks(), {**config, "rank_pattern": pattern})
    assert [rank for rank, _ in found(network)] == ranks
    if all(pattern.values()):
        twin = Blocks()
        inject_adapter_in_model(LoraConfig(**config, rank_pattern=pattern), twin)
        assert found(network) == found(twin)
    alphas = {key: value + 1 for key, value in pattern.items()}
    ours, twin = apply_lora(Blocks(), {**config, "alpha_pattern": alphas}), Blocks()
    inject_adapter_in_model(LoraConfig(**config, alpha_pattern=alphas), twin)
    assert found(ours) == found(twin)


def test_short_names_work_for_every_rank() -> None:
    """Beside PEFT's own keys, in their order; of a tied pair the one that is named."""
    config = {"r": 8, "lora_alpha": 8, "target_modules": ["c_attn", "c_fc", "wte", "lm_head"]}
    pattern = {"attn.1": 2, "mlp.*": 4, "wte": 0, r"h\.2\..*": 1}
    network = apply_lora(GPT(SIZES), {**config, "rank_pattern": pattern, "alpha_pattern": {"attn.0-1": 16}})
    ranks = {site.title: site.factors.rank for site in find_lora_sites(network).values()}

    assert ranks == {
        "wte": 0,
        "attn.0": 8,
        "mlp.0": 4,
        "attn.1": 2,
        "mlp.1": 4,
        "attn.2": 1,
        "mlp.2": 4,
        "lm_head": 8,
    }
    scaling = {site.title: site.factors.scaling for site in find_lora_sites(network).values()}
    assert (scaling["attn.0"], scaling["attn.1"], scaling["attn.2"]) == (2.0, 8.0, 8.0)
    assert network.peft_config["default"].exclude_modules == r"transformer\.wte"


@pytest.mark.parametrize("argument", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("key", ["layers.3.q", "qq", "attn.0", "layers"])
def test_an_unknown_key_is_an_error(argument: str, key: str) -> None:
    """Before the network is touched."""
    network = Blocks()
    with pytest.raises(ValueError, match=f"config.{argument}: '{key}' matches no layer.*Closest: 'layers"):
        apply_lora(network, {"r": 8, "target_modules": ["q"], argument: {key: 2}})
    assert not any("lora_" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize("targets", ["all-linear", None, r".*\.q"])
def test_targets_of_every_kind(targets: Any) -> None:
    """A shorthand, a regular expression; layers of a block are no layer with LoRA."""
    network: nn.Module = Blocks()
    options: dict[str, Any] = {"r": 8, "rank_pattern": {"layers.1.q": 0}}
    if targets is None:
        options |= {"target_parameters": ["layers.0.q.weight"], "rank_pattern": {"layers.0.q.weight": 2}}
    with_targets = {**options, "target_modules": targets} if targets else options
    model = apply_lora(network, with_targets)
    x = torch.randn(2, 8)
    assert model.layers[0]["q"](x).shape == (2, 8)
    if targets:
        assert [rank for rank, _ in found(model)] == [8, 0, 8]
    else:
        assert model.layers[0]["q"].r == {"default": 2}
