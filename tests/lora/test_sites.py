"""Which layers have LoRA, and what a key of a rank pattern means, in our GPT and four families."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import GPT, apply_lora
from lighter_freezers.lora.sites import find_lora_sites, is_tied, select_sites, why_unsupported
from tests.lab import TinyNet, regression
from tests.lora.lora_lab import adapted

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
}


def gpt() -> nn.Module:
    return GPT({"vocab_size": 64, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16})


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_layer=2, n_head=2, n_embd=16, bos_token_id=0, eos_token_id=0)
    )


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=32))


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**SMALL, intermediate_size=32))


FAMILIES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "gpt": (gpt, ["c_attn", "c_fc", "wte"]),
    "gpt2": (gpt2, ["c_attn", "c_fc", "wte"]),
    "llama": (llama, ["q_proj", "v_proj", "down_proj", "embed_tokens"]),
    "bert": (bert, ["query", "value", "output.dense", "word_embeddings"]),
}
ATTENTION = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value", "dense"]}
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["in place", "PeftModel"])
@pytest.mark.parametrize("family", FAMILIES)
def test_short_names_mean_the_same_everywhere(family: str, is_wrapped: bool) -> None:
    """`attn.N`, `mlp.N`, ranges, `block.N`, `wte`: whatever the model calls its parts."""
    from peft import LoraConfig, get_peft_model

    build, targets = FAMILIES[family]
    config = {"r": 4, "target_modules": targets}
    model: Any = get_peft_model(build(), LoraConfig(**config)) if is_wrapped else apply_lora(build(), config)
    sites = find_lora_sites(model)
    attention = ATTENTION.get(family, ["c_attn"])

    def chosen(pattern: str) -> list[str]:
        return [site.name.rpartition(".")[2] for site in select_sites(model, sites, pattern)]

    assert chosen("attn.1") == attention
    assert chosen("attn.*") == chosen("attn.0-1") == attention * 2
    assert len(chosen("mlp.0")) == 1
    assert chosen("block.1") == chosen("attn.1") + chosen("mlp.1")
    (embedding,) = select_sites(model, sites, "wte")
    assert embedding.factors.is_embedding
    assert embedding.title == "wte"
    assert {site.layer for site in sites.values()} == {"wte", "attn.0", "attn.1", "mlp.0", "mlp.1"}
    assert len({site.title for site in sites.values()}) == len(sites)


def test_other_keys_are_those_of_peft() -> None:
    """A regular expression for the end of the full name, behind whatever wrapper."""
    module = regression(
        "pytorch_lightning", network=lambda: apply_lora(gpt(), {"target_modules": ["c_attn"]})
    )
    sites = find_lora_sites(module)

    assert list(sites) == [f"network.transformer.h.{n}.attn.c_attn" for n in (0, 1)]
    for pattern in ("h.1.attn.c_attn", r"h\.1\..*", "transformer.h.1.attn.c_attn"):
        assert [site.title for site in select_sites(module, sites, pattern)] == ["attn.1"]
    assert len(select_sites(module, sites, "c_attn")) == 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("attn.7", "index 7 out of range.*'attn.1'"),
        ("mlp.0", "'mlp.0' is a layer of GPT, but there is no LoRA in it.*target_modules"),
        ("atn.0", "'attn.0'"),
        ("c_proj", "'transformer.h.0.attn.c_attn'"),
        ("(", "Closest|With LoRA"),
    ],
)
def test_what_matches_nothing_is_answered_with_what_there_is(pattern: str, message: str) -> None:
    model = apply_lora(gpt(), {"target_modules": ["c_attn"]})
    with pytest.raises(ValueError, match=message):
        select_sites(model, find_lora_sites(model), pattern)


def test_a_model_without_lora_is_told_where_to_get_it() -> None:
    model = gpt()
    assert find_lora_sites(model) == {}
    with pytest.raises(ValueError, match="no LoRA.*apply_lora"):
        select_sites(model, {}, "attn.0")


def test_titles_are_as_short_as_they_can_be() -> None:
    """The component; with the layer's own name where a component has several."""
    model = apply_lora(gpt(), {"target_modules": ["c_attn", "c_proj"]})

    assert [site.title for site in find_lora_sites(model).values()] == [
        *("attn.0.c_attn", "attn.0.c_proj", "mlp.0", "attn.1.c_attn", "attn.1.c_proj", "mlp.1")
    ]
    plain = apply_lora(TinyNet(), {"target_modules": ["layer1", "layer10"]})
    assert [site.title for site in find_lora_sites(plain).values()] == ["layer1", "layer10"]


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer:UserWarning")
def test_layers_that_cannot_be_resized_say_why() -> None:
    """They are not found, and a key that means one of them is answered with the reason."""
    model = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 1, groups=4), "fc": nn.Linear(8, 8)})
    apply_lora(model, {"target_modules": ["conv", "fc"]})
    sites = find_lora_sites(model)

    assert list(sites) == ["fc"]
    assert "grouped" in why_unsupported(model["conv"], "default")
    with pytest.raises(ValueError, match="rank of 'conv' cannot change: it is a grouped convolution"):
        select_sites(model, sites, "conv")


def test_a_tied_weight_is_seen_by_identity_and_by_memory() -> None:
    """Also where the two are different parameters on the same storage."""
    model = gpt()
    assert is_tied(model, model.lm_head.weight)
    assert not is_tied(model, model.transformer.h[0].attn.c_attn.weight)
    pair = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    pair["b"].weight = nn.Parameter(pair["a"].weight.detach().T)
    assert is_tied(pair, pair["a"].weight)


def test_factors_are_matrices_whatever_the_layer() -> None:
    """(m, n) is the shape of the weight as a map from inputs to outputs."""
    shapes = {"Linear": (24, 32), "Conv1D": (24, 32), "Embedding": (24, 32), "Conv2d": (24, 36)}
    for kind, shape in shapes.items():
        (site,) = find_lora_sites(adapted(kind)).values()
        A, B = site.factors.matrices
        assert site.factors.shape == shape
        assert (B @ A).shape == torch.Size(shape)
        assert site.factors.rank == 8
        assert site.factors.scaling == 1.5
