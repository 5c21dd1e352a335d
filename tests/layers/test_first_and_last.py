"""The first and the last layers of every architecture: what is frozen, what comes back, what is refused."""

import logging
from collections.abc import Callable

import peft
import pytest
import torch
from torch import nn

from lighter_freezers.engine import ledger
from lighter_freezers.layers import (
    freeze_except_last_n,
    freeze_first_n_layers,
    freeze_last_n_layers,
    freeze_model,
    unfreeze_first_n_layers,
    unfreeze_last_n_layers,
    unfreeze_model,
)
from tests.architectures import ARCHITECTURES

# Where the blocks are, in the words of each model's own code.
BLOCKS: dict[str, Callable[[nn.Module], list[nn.Module]]] = {
    "gpt2": lambda m: [*m.transformer.h],
    "neox": lambda m: [*m.gpt_neox.layers],
    "llama": lambda m: [*m.model.layers],
    "opt": lambda m: [*m.model.decoder.layers],
    "bert-classifier": lambda m: [*m.bert.encoder.layer],
    "distilbert": lambda m: [*m.distilbert.transformer.layer],
    "t5": lambda m: [*m.encoder.block, *m.decoder.block],
    "bart": lambda m: [*m.model.encoder.layers, *m.model.decoder.layers],
    "whisper": lambda m: [*m.model.encoder.layers, *m.model.decoder.layers],
    "vit": lambda m: [*(m.vit.layers if hasattr(m.vit, "layers") else m.vit.encoder.layer)],  # transformers 4
    "resnet18": lambda m: [*m.layer1, *m.layer2, *m.layer3, *m.layer4],
    "ours": lambda m: [*m.transformer.h],
    "sequential": lambda m: [m[1], m[3]],
}


@pytest.fixture(autouse=True)
def log_reaches_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's logger prints where logging is not configured."""
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)


def trained_by(model: nn.Module) -> set[int]:
    return {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def ids(*modules: nn.Module) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


def size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("name", BLOCKS)
def test_the_first_layers_and_back(name: str) -> None:
    """All of the first n and nothing else; the returned numbers are those of torch."""
    model = ARCHITECTURES[name]()
    blocks, before = BLOCKS[name](model), trained_by(model)

    assert freeze_first_n_layers(model, 2) == size(*blocks[:2])
    assert trained_by(model) == before - ids(*blocks[:2])
    assert freeze_first_n_layers(model, 2) == 0
    assert unfreeze_first_n_layers(model, 1) == size(blocks[0])
    assert trained_by(model) == before - ids(blocks[1])


@pytest.mark.parametrize("name", BLOCKS)
def test_the_last_layers_and_back(name: str) -> None:
    """All of the last n and nothing else; what is frozen already does not count."""
    model = ARCHITECTURES[name]()
    blocks, before = BLOCKS[name](model), trained_by(model)

    assert freeze_last_n_layers(model, 1) == size(blocks[-1])
    assert freeze_last_n_layers(model, 2) == size(blocks[-2])
    assert trained_by(model) == before - ids(*blocks[-2:])
    assert unfreeze_last_n_layers(model, 2) == size(*blocks[-2:])
    assert trained_by(model) == before


HEADS: dict[str, Callable[[nn.Module], list[nn.Module]]] = {
    "gpt2": lambda m: [m.transformer.ln_f, m.lm_head],
    "llama": lambda m: [m.model.norm, m.lm_head],
    "bert-classifier": lambda m: [m.bert.pooler, m.classifier],
    "distilbert": lambda m: [m.vocab_transform, m.vocab_layer_norm, m.vocab_projector],
    "t5": lambda m: [m.decoder.final_layer_norm, m.lm_head],
    "vit": lambda m: [m.vit.layernorm, m.classifier],
    "resnet18": lambda m: [m.fc],
    "sequential": lambda m: [m[4], m[5]],
}


@pytest.mark.parametrize("name", HEADS)
def test_all_but_the_last_layers(name: str) -> None:
    """The last block, the norm behind it and the head train; the returned number is the difference."""
    model = ARCHITECTURES[name]()
    kept = [BLOCKS[name](model)[-1], *HEADS[name](model)]
    before, total = trained_by(model), size(model)
    frozen = freeze_except_last_n(model, 1)

    assert trained_by(model) == ids(*kept) & before
    assert frozen == total - sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_all_but_the_head() -> None:
    """With 0 layers only the head trains, not the norm before it."""
    model = ARCHITECTURES["llama"]()
    freeze_except_last_n(model, 0)

    assert trained_by(model) == ids(model.lm_head)


def test_the_last_layers_train_also_if_all_was_frozen_before() -> None:
    """Asked for afterwards, it is the same."""
    model, other = ARCHITECTURES["llama"](), ARCHITECTURES["llama"]()
    freeze_model(model)

    assert freeze_except_last_n(model, 1) == 0
    freeze_except_last_n(other, 1)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in other.parameters()]


def test_attention_outputs_of_a_bert_are_no_head() -> None:
    """`output` is part of many names in BERT's layers; those below the last stay frozen."""
    model = ARCHITECTURES["bert-classifier"]()
    freeze_except_last_n(model, 1)
    below = [*model.bert.encoder.layer][:-1]

    assert not trained_by(model) & ids(*below)


@pytest.mark.parametrize("verb", [freeze_first_n_layers, freeze_last_n_layers, freeze_except_last_n])
def test_more_layers_than_there_are(
    verb: Callable[[nn.Module, int], int], caplog: pytest.LogCaptureFixture
) -> None:
    """All are taken, and a warning says how many there are."""
    model, other = ARCHITECTURES["llama"](), ARCHITECTURES["llama"]()
    with caplog.at_level(logging.WARNING, "lighter_freezers"):
        assert verb(model, 99) == verb(other, 3)
    assert "the model has 3 layers, not 99" in caplog.text


VERBS = [
    freeze_except_last_n,
    freeze_first_n_layers,
    freeze_last_n_layers,
    unfreeze_first_n_layers,
    unfreeze_last_n_layers,
]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb is not freeze_except_last_n])
def test_no_layers_at_all(verb: Callable[..., int]) -> None:
    """Zero is a number: nothing changes."""
    model = ARCHITECTURES["llama"]()
    freeze_last_n_layers(model, 1)
    before = trained_by(model)

    assert verb(model, 0) == 0
    assert trained_by(model) == before


@pytest.mark.parametrize("verb", VERBS)
def test_numbers_that_are_none(verb: Callable[..., int]) -> None:
    """Negative, of another type, or missing: nothing is changed."""
    model = ARCHITECTURES["llama"]()
    with pytest.raises(ValueError, match="n counts from 0. Got -1"):
        verb(model, -1)
    for wrong in ("2", 1.5, True, None):
        with pytest.raises(TypeError, match="n must be a whole number"):
            verb(model, wrong)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_without_blocks_says_so(verb: Callable[..., int]) -> None:
    """The error names the model and what to use instead."""
    with pytest.raises(ValueError, match=rf"{verb.__name__} needs layers, but Linear has no blocks"):
        verb(nn.Linear(2, 2), 1)


def test_what_a_trainable_embedding_costs_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Of the matrix products of a step; silence where the embedding is frozen.

    A layer has 8 * (24 + 8 + 32 + 32) elements, the head 32 * 8. Two layers need two products each, one of
    them for the embedding alone, the third layer and the head three.
    """
    share = 2 * 768 / (2 * 2 * 768 + 3 * 768 + 3 * 256)
    model = ARCHITECTURES["gpt2"]()
    with caplog.at_level(logging.WARNING, "lighter_freezers"):
        freeze_first_n_layers(model, 2)
    assert "'transformer.wte.weight' still trains below the first 2 layers" in caplog.text
    assert f"about {100 * share:.0f} % of a step" in caplog.text
    assert "freeze_embeddings(model)" in caplog.text
    assert "The head shares their weight" in caplog.text
    freeze_model(model)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lighter_freezers"):
        freeze_first_n_layers(model, 2)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_layers_with_lora_thaw_their_factors_only() -> None:
    """The base of a PEFT model stays frozen."""
    model = peft.get_peft_model(ARCHITECTURES["llama"](), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    factors = {n for n, p in model.named_parameters() if p.requires_grad}
    assert factors

    assert freeze_first_n_layers(model, 3) == sum(
        p.numel() for n, p in model.named_parameters() if n in factors
    )
    assert unfreeze_last_n_layers(model, 3) > 0
    assert {n for n, p in model.named_parameters() if p.requires_grad} == factors


def test_a_held_layer_follows_when_it_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    """What a Freezer holds is not thawed under it; what is frozen by hand stays so after a release."""
    model = ARCHITECTURES["llama"]()
    blocks = [*model.model.layers]
    hold = ledger.Hold([*blocks[0].parameters(), *blocks[1].parameters()], "Freezer 'trunk'")
    hold.take()
    with caplog.at_level(logging.WARNING, "lighter_freezers"):
        assert unfreeze_first_n_layers(model, 1) == 0
    assert "stay frozen until Freezer 'trunk' releases them" in caplog.text
    assert freeze_first_n_layers(model, 1) == 0  # by hand, while it is held
    hold.let_go()

    assert not trained_by(model) & ids(blocks[0])
    assert ids(blocks[1]) <= trained_by(model)
    assert unfreeze_model(model) == size(blocks[0])


def test_frozen_layers_do_not_move() -> None:
    """A step of training changes what trains; gradients of what is frozen are cleared."""
    model = ARCHITECTURES["ours-classifier"]()
    tokens, classes = torch.ones(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(tokens, classes)[1].backward()
    freeze_except_last_n(model, 1)
    assert all((parameter.grad is not None) <= parameter.requires_grad for parameter in model.parameters())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}

    assert moved <= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("transformer.h.2.") for name in moved)
