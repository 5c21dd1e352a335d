"""What operations hold: one holder, in which the last word on a parameter counts."""

import pytest
import torch
from torch import nn

from lighter_freezers import GPT
from lighter_freezers.engine import ledger
from lighter_freezers.layers.operations import LayerHolds
from lighter_freezers.lora.apply import apply_lora
from lighter_freezers.selection.layer_names import parameters_of_layer

CONFIG = {"n_layer": 3, "n_embd": 8, "n_head": 2, "block_size": 8, "vocab_size": 16}


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG)


@pytest.fixture
def holds() -> LayerHolds:
    return LayerHolds("LayerOperations", lambda: None)


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def names(model: nn.Module, *layers: str) -> set[str]:
    return {name for layer in layers for name in parameters_of_layer(model, layer)}


def test_freeze_and_unfreeze_a_layer(gpt: GPT, holds: LayerHolds) -> None:
    """All of its parameters, and no others; twice is once."""
    assert holds.freeze(gpt, "attn.1") == "froze 256 parameters"
    assert frozen(gpt) == names(gpt, "attn.1")
    assert holds.freeze(gpt, "attn.1") == "no effect, it was frozen already"
    assert holds.unfreeze(gpt, "attn.1") == "thawed 256 parameters"
    assert frozen(gpt) == set()
    assert holds.unfreeze(gpt, "attn.1") == "no effect, it trained already"


def test_ranges_of_layers(gpt: GPT, holds: LayerHolds) -> None:
    """`mlp.*` and `attn.0-1`."""
    holds.freeze(gpt, "mlp.*")
    holds.freeze(gpt, "attn.0-1")
    assert frozen(gpt) == names(gpt, "mlp.0", "mlp.1", "mlp.2", "attn.0", "attn.1")


def test_the_last_word_counts(gpt: GPT, holds: LayerHolds) -> None:
    """A part of a frozen block is set free, whichever operation froze it."""
    holds.freeze(gpt, "block.1")
    holds.freeze(gpt, "attn.1")
    holds.unfreeze(gpt, "attn.1")

    assert frozen(gpt) == names(gpt, "block.1") - names(gpt, "attn.1")


def test_a_tied_weight_is_one_parameter_under_two_names(gpt: GPT, holds: LayerHolds) -> None:
    """The guide's example freezes both; releasing one releases the shared weight."""
    assert holds.freeze(gpt, "wte") == "froze 128 parameters"
    assert holds.freeze(gpt, "lm_head") == "no effect, it was frozen already (tied to wte)"
    assert holds.unfreeze(gpt, "lm_head") == "thawed 128 parameters (tied to wte)"
    assert frozen(gpt) == set()


def test_what_the_user_froze_is_made_trainable(gpt: GPT, holds: LayerHolds) -> None:
    """Unfreezing a layer makes it train, even if no operation froze it."""
    gpt.requires_grad_(False)

    assert holds.unfreeze(gpt, "attn.2") == "thawed 256 parameters"
    assert set(dict(gpt.named_parameters())) - frozen(gpt) == names(gpt, "attn.2")


def test_what_somebody_else_holds_stays_frozen(gpt: GPT, holds: LayerHolds) -> None:
    """And the log names the holder; it trains once released."""
    attention = list(parameters_of_layer(gpt, "attn.0").values())
    other = ledger.Hold(attention, "Freezer['h.0']")
    other.take()
    holds.freeze(gpt, "attn.0")

    assert holds.unfreeze(gpt, "attn.0") == "no effect yet, held by Freezer['h.0']"
    assert frozen(gpt) == names(gpt, "attn.0")
    other.let_go()
    assert frozen(gpt) == set()


def test_in_a_layer_with_lora_only_the_factors_are_set_free(gpt: GPT, holds: LayerHolds) -> None:
    """The weights that they adapt, and the rest of the frozen base, stay as they were."""
    apply_lora(gpt, {"r": 2, "target_modules": ["c_attn"], "rank_pattern": {"h.2.attn.c_attn": 0}})
    factors = {name for name in names(gpt, "attn.1") if "lora_" in name}
    assert holds.freeze(gpt, "attn.1") == "froze 64 parameters"
    assert not factors - frozen(gpt)
    assert holds.unfreeze(gpt, "attn.1") == "thawed 64 parameters"
    assert names(gpt, "attn.1") - frozen(gpt) == factors
    assert holds.unfreeze(gpt, "attn.2") == "thawed 256 parameters"  # rank 0: there is no LoRA to speak of


def test_state_and_restore(gpt: GPT, holds: LayerHolds) -> None:
    """By name, in a model that was built again; leaving keeps the flags."""
    for parameter in parameters_of_layer(gpt, "wpe").values():
        parameter.requires_grad_(False)
    holds.freeze(gpt, "block.1")
    holds.unfreeze(gpt, "mlp.1")
    holds.unfreeze(gpt, "wpe")
    state, before = holds.state(gpt), frozen(gpt)
    assert all(type(name) is str for group in state.values() for name in group)

    anew = GPT(CONFIG)
    anew.transformer.wpe.requires_grad_(False)
    other = LayerHolds("LayerOperations", lambda: None)
    other.restore(anew, state)
    assert frozen(anew) == before
    assert other.state(anew) == state
    other.leave()
    assert frozen(anew) == before
    assert not any(ledger.is_held(parameter) for parameter in anew.parameters())


def test_what_stays_held_of_a_hold_is_watched(gpt: GPT) -> None:
    """One layer of three thaws; other code then switches one of the others on."""
    noticed: list[str] = []
    holds = LayerHolds("LayerOperations", lambda: noticed.append("a gradient"))
    holds.freeze(gpt, "attn.*")
    holds.unfreeze(gpt, "attn.1")
    weight = gpt.get_parameter("transformer.h.0.attn.c_attn.weight")
    weight.requires_grad = True
    weight.sum().backward()

    assert noticed == ["a gradient"]
