"""`set_layer_lora_rank` and its relatives: the guide's calls, on models with LoRA and without."""

from typing import Any

import pytest
import torch

from lighter_freezers import GPT, apply_lora, set_layer_lora_rank
from lighter_freezers.engine import ledger
from lighter_freezers.lora.attach import prepare_lora_layers
from lighter_freezers.lora.relora import merge_lora_weights
from lighter_freezers.lora.set_rank import check_layer_lora_rank, hold_bases
from lighter_freezers.lora.sites import find_lora_sites

SIZES = {"vocab_size": 64, "block_size": 16, "n_layer": 3, "n_head": 2, "n_embd": 16}


def gpt(**config: Any) -> GPT:
    torch.manual_seed(0)
    return GPT({**SIZES, **config})


def x() -> torch.Tensor:
    return torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))


def frozen(model: GPT) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def learn(model: GPT, num_steps: int = 3) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model(x(), x())[1].backward()
        optimizer.step()
    return optimizer


def test_a_plain_model_gets_lora_where_it_is_asked_for() -> None:
    """Function kept; the weight below is held, all the rest trains on; PEFT's config knows the layer."""
    model = gpt()
    before = model(x())[0]
    ((site, change),) = set_layer_lora_rank(model, "attn.1", 4)

    assert (site.layer, site.name) == ("attn.1", "transformer.h.1.attn.c_attn")
    assert (change.rank_before, change.rank_after) == (0, 4)
    assert torch.equal(model(x())[0], before)
    assert frozen(model) == ["transformer.h.1.attn.c_attn.base_layer.weight"]
    assert ledger.holders(model.transformer.h[1].attn.c_attn.base_layer.weight) == ("LoRA",)
    assert model.peft_config["default"].target_modules == {"transformer.h.1.attn.c_attn"}


def test_rank_zero_merges_and_lets_the_weight_train_again() -> None:
    """As the guide's users expect; the function stays."""
    model = gpt()
    set_layer_lora_rank(model, "attn.1", 4)
    learn(model)
    before = model(x())[0]
    ((_, change),) = set_layer_lora_rank(model, "attn.1", 0)

    assert change.is_merged
    assert torch.allclose(model(x())[0], before, atol=1e-5)
    assert frozen(model) == []
    ((_, again),) = set_layer_lora_rank(model, "attn.1", 8)
    assert (again.rank_before, again.rank_after) == (0, 8)


def test_embeddings_with_a_tied_head() -> None:
    """LoRA adapts the input side, and the head's weight is held too: it is the same. A merge is refused."""
    model = gpt()
    before = model(x())[0]
    set_layer_lora_rank(model, "wte", 12)
    assert torch.equal(model(x())[0], before)
    assert frozen(model) == ["transformer.wte.base_layer.weight"]
    learn(model)
    with pytest.raises(RuntimeError, match="tied to another layer"):
        set_layer_lora_rank(model, "wte", 0)
    base = model.lm_head.weight.detach().clone()
    set_layer_lora_rank(model, "wte", 0, on_zero="drop")

    assert torch.equal(model.lm_head.weight, base)
    assert frozen(model) == []


def test_embeddings_without_a_tied_head_merge() -> None:
    model = gpt(tie_weights=False)
    set_layer_lora_rank(model, "wte", 4)
    learn(model)
    before = model(x())[0]
    set_layer_lora_rank(model, "wte", 0)

    assert torch.allclose(model(x())[0], before, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "modules"),
    [
        ("attn.*", ["h.0.attn.c_attn", "h.1.attn.c_attn", "h.2.attn.c_attn"]),
        ("attn.0-1", ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
        ("mlp.2", ["h.2.mlp.c_fc", "h.2.mlp.c_proj"]),
        ("block.1", ["h.1.attn.c_attn"]),
        ("block.2", ["h.2.attn.c_attn", "h.2.mlp.c_fc", "h.2.mlp.c_proj"]),
        ("wte", ["wte"]),
    ],
)
def test_which_layers_get_lora(layer: str, modules: list[str]) -> None:
    """Those that have it; else what makes queries, keys and values, or every linear layer."""
    model = gpt()
    set_layer_lora_rank(model, "attn.1", 2)  # one has it already
    chosen = set_layer_lora_rank(model, layer, 3)

    assert sorted(site.name for site, _ in chosen) == sorted(f"transformer.{name}" for name in modules)
    assert all(change.rank_after == 3 for _, change in chosen)


def test_lm_head_and_wte_are_two_layers_of_one_weight() -> None:
    model = gpt()
    ((site, _),) = set_layer_lora_rank(model, "lm_head", 4)

    assert site.name == "lm_head"
    assert not site.factors.is_embedding


def test_a_model_with_lora_keeps_its_own() -> None:
    """No base weight is held there: the user froze it, and it stays so."""
    model = apply_lora(gpt(), {"r": 4, "target_modules": ["c_attn"]})
    before = frozen(model)
    set_layer_lora_rank(model, "attn.0", 8)
    set_layer_lora_rank(model, "attn.0", 0)

    assert frozen(model) == before


def test_rank_zero_where_there_is_no_lora_is_said(caplog: Any) -> None:
    with caplog.at_level("WARNING", logger="lighter_freezers"):
        assert set_layer_lora_rank(gpt(), "mlp.0", 0) == []
    assert "mlp.0 has no LoRA" in caplog.text


@pytest.mark.parametrize("has_lora", [True, False])
@pytest.mark.parametrize(
    ("layer", "rank", "error", "message"),
    [
        ("attn.0", 17, ValueError, "17 is impossible.*48 x 16.*0 to 16"),
        ("attn.0", -1, ValueError, "impossible"),
        ("attn.0", "4", TypeError, "whole number"),
        ("attn.0", True, TypeError, "whole number"),
        ("attn.3", 4, ValueError, "out of range"),
        ("atn.0", 4, ValueError, "Unknown component 'atn'|Unknown layer"),
        ("ln_1.0", 4, ValueError, "Nothing in 'ln_1.0' can have LoRA"),
    ],
)
def test_impossible_wishes_are_refused_in_advance(
    layer: str, rank: Any, error: type[Exception], message: str, has_lora: bool
) -> None:
    """By the check and by the deed alike, and nothing has changed then."""
    model = gpt()
    if has_lora:
        set_layer_lora_rank(model, "attn.0", 2)
    names = [name for name, _ in model.named_parameters()]
    for call in (check_layer_lora_rank, set_layer_lora_rank):
        with pytest.raises(error, match=message):
            call(model, layer, rank)
    assert [name for name, _ in model.named_parameters()] == names


def test_prepared_layers_change_nothing() -> None:
    """Neither the function nor what trains, nor torch's random numbers; twice is once."""
    model = gpt()
    before, state = model(x())[0], torch.get_rng_state()
    prepare_lora_layers(model, ["attn.*", "wte"])
    prepare_lora_layers(model, ["attn.0", "wte"])

    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(model(x())[0], before)
    assert frozen(model) == []
    assert [site.factors.rank for site in find_lora_sites(model).values()] == [0] * 4
    learn(model)


def test_bases_are_held_again_after_a_checkpoint() -> None:
    """Weights bring the ranks back; who is held follows from them."""
    model, twin = gpt(), gpt()
    set_layer_lora_rank(model, "attn.0", 4)
    prepare_lora_layers(twin, ["attn.0", "attn.1"])
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        twin.load_state_dict(state)
    prepare_lora_layers(model, ["attn.1"])
    twin.load_state_dict(model.state_dict())
    assert frozen(twin) == []
    hold_bases(twin)

    assert frozen(twin) == frozen(model) == ["transformer.h.0.attn.c_attn.base_layer.weight"]


def test_the_same_seed_draws_the_same_components() -> None:
    """Two processes agree without a word, and layers differ."""
    rows = []
    for _ in range(2):
        model = gpt()
        torch.rand(1)
        set_layer_lora_rank(model, "attn.0-1", 4, seed="7/100")
        rows.append([model.transformer.h[n].attn.c_attn.lora_A["default"].weight.detach() for n in (0, 1)])

    assert torch.equal(rows[0][0], rows[1][0])
    assert not torch.equal(rows[0][0], rows[0][1])


def test_relora_merges_and_begins_anew() -> None:
    """Function and ranks stay, the update is in the weight, the optimizer forgets the factors."""
    model = gpt(tie_weights=False)
    for layer in ("attn.0", "attn.1", "wte"):
        set_layer_lora_rank(model, layer, 4)
    optimizer = learn(model)
    before = model(x())[0]
    base = model.transformer.h[0].attn.c_attn.base_layer.weight.detach().clone()
    assert merge_lora_weights(model, ["attn.0"], optimizers=[optimizer], seed="1") == ["attn.0"]
    assert sorted(merge_lora_weights(model)) == ["attn.0", "attn.1", "wte"]

    assert torch.allclose(model(x())[0], before, atol=1e-5)
    assert not torch.equal(model.transformer.h[0].attn.c_attn.base_layer.weight, base)
    for site in find_lora_sites(model).values():
        A, B = site.factors.parameters
        assert site.factors.rank == 4
        assert bool(A.any()) != bool(B.any())
    forgotten = model.transformer.h[0].attn.c_attn.lora_A["default"].weight
    assert forgotten not in optimizer.state
    learn(model)


def test_relora_refuses_what_a_merge_would_break() -> None:
    """Nothing has been merged then."""
    model = gpt()
    set_layer_lora_rank(model, "attn.0", 4)
    set_layer_lora_rank(model, "wte", 4)
    learn(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="tied"):
        merge_lora_weights(model)
    with pytest.raises(ValueError, match="no LoRA in it"):
        merge_lora_weights(model, ["mlp.0"])

    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
