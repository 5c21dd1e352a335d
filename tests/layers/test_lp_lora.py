"""The lower layers frozen, the upper ones trained whole or by LoRA."""

import copy

import peft
import pytest
import torch
from torch import nn

from lighter_freezers import GPT
from lighter_freezers.layers import get_frozen_percentage, setup_lp_lora_style
from tests.architectures import ARCHITECTURES

LORA = {"r": 2, "target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"]}


def training(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("ratio", "first"), [(0.0, 0), (0.5, 1), (0.67, 2), (1.0, 3)], ids=lambda value: str(value)
)
def test_a_share_of_the_layers(ratio: float, first: int) -> None:
    """Rounded down; with the embeddings, and neither norm nor head."""
    model = ARCHITECTURES["llama"]()
    total = sum(p.numel() for p in model.parameters())
    frozen = setup_lp_lora_style(model, ratio)
    kept = [*model.model.layers[first:], model.model.norm, model.lm_head]

    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for m in kept for p in m.parameters()
    }
    assert frozen == total - sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert setup_lp_lora_style(model, ratio) == 0


def test_shares_are_not_lost_to_binary_fractions() -> None:
    """0.29 of 100 layers are 29, though 0.29 * 100 is a little less."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(100)))
    assert int(0.29 * 100) == 28

    assert setup_lp_lora_style(model, 0.29) == 29


def test_embeddings_can_go_on_training() -> None:
    """If they are to."""
    model = ARCHITECTURES["llama"]()
    setup_lp_lora_style(model, 0.5, freeze_embed=False)

    assert "model.embed_tokens.weight" in training(model)
    assert 0 < get_frozen_percentage(model) < 50


@pytest.mark.parametrize("as_config", [False, True], ids=["mapping", "LoraConfig"])
def test_lora_on_the_upper_layers(as_config: bool) -> None:
    """Not in the frozen ones, not on frozen embeddings; the config that is passed is left as it is."""
    model = ARCHITECTURES["llama"]()
    total = sum(p.numel() for p in model.parameters())
    lora = peft.LoraConfig(**LORA) if as_config else dict(LORA)
    before = copy.deepcopy(lora)
    assert setup_lp_lora_style(model, 0.5, lora=lora) == total
    adapted = {name.partition(".lora_")[0] for name in training(model)}

    assert all(".lora_" in name for name in training(model))
    assert adapted == {
        "lm_head",
        *(f"model.layers.{i}.{n}" for i in (1, 2) for n in ("self_attn.q_proj", "mlp.down_proj")),
    }
    assert lora == before


def test_lora_on_embeddings_that_are_not_frozen() -> None:
    """What is not frozen can have LoRA."""
    model = ARCHITECTURES["llama"]()
    setup_lp_lora_style(model, 0.5, freeze_embed=False, lora=LORA)

    assert any(name.startswith("model.embed_tokens.lora_") for name in training(model))


@pytest.mark.parametrize(
    "excluded",
    [["2.self_attn.q_proj", "lm_head"], r".*\.2\.self_attn\.q_proj|lm_head"],
    ids=["list", "regex"],
)
def test_what_the_user_excludes_stays_excluded(excluded: object) -> None:
    """Beside the frozen layers."""
    model = ARCHITECTURES["llama"]()
    setup_lp_lora_style(model, 0.5, lora={**LORA, "exclude_modules": excluded})
    adapted = {name.partition(".lora_")[0] for name in training(model)}

    assert adapted == {
        *("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"),
    }


def test_a_new_classifier_still_trains_beside_lora() -> None:
    """Untrained, it would be of no use."""
    model = ARCHITECTURES["bert-classifier"]()
    setup_lp_lora_style(model, 0.5, lora={"r": 2, "target_modules": ["query"]})
    others = {name for name in training(model) if ".lora_" not in name}

    assert others == {
        *(f"bert.pooler.dense.{kind}" for kind in ("weight", "bias")),
        *(f"classifier.{kind}" for kind in ("weight", "bias")),
    }


def test_it_trains_what_it_says_and_nothing_else() -> None:
    """A few steps: the factors move and all the rest is bit-equal."""
    torch.manual_seed(0)
    model = ARCHITECTURES["llama"]()
    setup_lp_lora_style(model, 0.5, lora=LORA)
    tokens = torch.randint(32, (2, 8))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == training(model)


def test_an_encoder_comes_before_its_decoder() -> None:
    """Of five layers 0.6 are three: both of the encoder and the first of the decoder."""
    model = ARCHITECTURES["bart"]()
    setup_lp_lora_style(model, 0.6)
    layers = {name.rpartition(".layers.")[0] + name.rpartition(".layers.")[2][:1] for name in training(model)}

    assert layers == {"model.decoder1", "model.decoder2"}


def test_a_model_without_embeddings() -> None:
    """There is nothing to freeze below its layers."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(4)))

    assert setup_lp_lora_style(model) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"freeze_ratio": 1.5}, ValueError, "freeze_ratio must be between 0 and 1"),
        ({"freeze_ratio": "0.5"}, TypeError, "freeze_ratio must be a number"),
        ({"freeze_embed": "yes"}, TypeError, "freeze_embed must be true or false"),
        ({"lora": {"r": 2, "target_modules": ["q_prj"]}}, ValueError, "is called 'q_prj'"),
        ({"lora": {"r": 2, "target_modules": "("}}, ValueError, r"target_modules: '\(' is not a regular"),
        ({"lora": {"r": 2, "target_modules": [[1]]}}, TypeError, "target_modules must be a regular"),
        ({"lora": {**LORA, "exclude_modules": "("}}, ValueError, "exclude_modules: .* not a regular"),
        ({"lora": {**LORA, "exclude_modules": 5}}, TypeError, "exclude_modules must be a regular"),
        ({"lora": {**LORA, "exclude_modules": [None]}}, TypeError, "exclude_modules must be a regular"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    """The message says which, and nothing is frozen."""
    model = ARCHITECTURES["llama"]()
    with pytest.raises(error, match=message):
        setup_lp_lora_style(model, **arguments)  # type: ignore[arg-type]
    assert training(model) == {name for name, _ in model.named_parameters()}


def test_lora_twice() -> None:
    """A model that has it gets no second one."""
    model = ARCHITECTURES["llama"]()
    setup_lp_lora_style(model, 0.5, lora=LORA)
    with pytest.raises(ValueError, match="has LoRA already"):
        setup_lp_lora_style(model, 0.5, lora=LORA)
    with pytest.raises(ValueError, match="setup_lp_lora_style needs layers, but Linear has no blocks"):
        setup_lp_lora_style(nn.Linear(2, 2))


def test_lora_without_targets_on_a_model_of_no_type_peft_knows() -> None:
    """A GPT has a config, but no `model_type` for which PEFT has targets."""
    network = GPT({"n_layer": 2, "n_embd": 8, "n_head": 2, "block_size": 8, "vocab_size": 16})
    with pytest.raises(ValueError, match="config needs target_modules"):
        setup_lp_lora_style(network, lora={"r": 2})
