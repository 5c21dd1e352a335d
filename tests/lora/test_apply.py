"""LoRA from a config, around any network, and the errors of a config."""

from collections import UserList
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from lighter_freezers import GPT, GPTModule, apply_lora
from lighter_freezers.lora.sites import find_lora_sites
from tests.lab import TinyNet

SIZES = {"vocab_size": 64, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}


def test_the_network_keeps_its_class_and_its_function() -> None:
    """So GPTModule takes it, and only adapters train."""
    model = GPT(SIZES)
    x = torch.randint(64, (2, 16))
    before = model(x)[0]
    adapted = apply_lora(model, {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "wte"]})

    assert adapted is model
    assert torch.equal(adapted(x)[0], before)
    assert isinstance(GPTModule(network=adapted).network, GPT)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    assert adapted.generate(x, 2).shape == (2, 18)


def test_a_real_config_does_the_same() -> None:
    """And is not changed by it."""
    config = LoraConfig(r=4, target_modules=["c_attn"], rank_pattern={"h.0.attn.c_attn": 0})
    model = apply_lora(GPT(SIZES), config)

    assert [site.factors.rank for site in find_lora_sites(model).values()] == [0, 4]
    assert config.rank_pattern == {"h.0.attn.c_attn": 0}


@pytest.mark.parametrize("pattern", [{"h.1.attn.c_attn": 0}, {r"h\.1\..*": 0, ".*": 8}])
def test_a_layer_can_begin_without_lora(pattern: dict[str, int]) -> None:
    """Its scaling is the one it would have had: alpha / r."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "rank_pattern": pattern}
    sites = find_lora_sites(apply_lora(GPT(SIZES), config)).values()

    assert [site.factors.rank for site in sites] == [pattern.get(".*", 4), 0]
    assert [site.factors.scaling for site in sites] == [8 / pattern.get(".*", 4), 2.0]


def test_a_model_of_transformers() -> None:
    """Its methods work on; adapters go where PEFT puts them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_layer=1, n_head=2, n_embd=16, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    apply_lora(model, {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True})

    assert type(model) is GPT2LMHeadModel
    assert list(find_lora_sites(model)) == ["transformer.h.0.attn.c_attn"]
    assert model(torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 64)


@pytest.mark.filterwarnings("error")
def test_two_adapters_in_one_network() -> None:
    """The second is the active one, as in PEFT; ranks are apart."""
    model = apply_lora(GPT(SIZES), {"r": 4, "target_modules": ["c_attn"]})
    apply_lora(model, {"r": 2, "target_modules": ["c_attn", "c_fc"]}, adapter_name="second")

    assert [site.factors.rank for site in find_lora_sites(model).values()] == [4, 4]
    assert [site.factors.rank for site in find_lora_sites(model, "second").values()] == [2] * 4


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"r": "8", "target_modules": ["c_attn"]}, TypeError, "config.r must be a number"),
        ({"lora_alpha": "1e1", "target_modules": ["c_attn"]}, TypeError, "lora_alpha.*5.0e-5"),
        ({"lora_dropout": "5e-2", "target_modules": ["c_attn"]}, TypeError, "lora_dropout"),
        ({"rank_pattern": {"h.0": "4"}, "target_modules": ["c_attn"]}, TypeError, "rank_pattern.*Remove the"),
        ({"r": 0, "target_modules": ["c_attn"]}, ValueError, "at least 1.*0 in config.rank_pattern"),
        ({"rnk": 8, "target_modules": ["c_attn"]}, ValueError, "does not know 'rnk'.*rank_pattern"),
        ({"target_modules": ["c_attn", "c_projj"]}, ValueError, "called 'c_projj'.*'c_proj'"),
        ({"target_modules": ["wte"], "ensure_weight_tying": True}, ValueError, "trains them twice"),
        ("c_attn", TypeError, "mapping or a LoraConfig. Got 'c_attn'"),
    ],
)
def test_a_wrong_config_is_refused(config: Any, error: type[Exception], message: str) -> None:
    """With the way out, before the network is touched."""
    model = GPT(SIZES)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(error, match=message):
        apply_lora(model, config)

    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_any_module_will_do() -> None:
    """One without blocks, and one with a regular expression for its targets."""
    model: nn.Module = apply_lora(TinyNet(), {"r": 2, "target_modules": r"layer1\d*"})

    assert list(find_lora_sites(model)) == ["layer1", "layer10"]


@pytest.mark.parametrize("kind", [list, tuple, UserList])
def test_a_misspelt_target_is_refused_in_lists_of_any_kind(kind: Any) -> None:
    """Config libraries hand on lists that are no `list`."""
    network = GPT(SIZES)
    with pytest.raises(ValueError, match="'c_porj'"):
        apply_lora(network, {"r": 4, "target_modules": kind(["c_attn", "c_porj"])})
