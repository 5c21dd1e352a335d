"""The GPT against transformers' GPT-2, against the properties of its parts, and layer by layer."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lighter_freezers import GPT, Freezer, GPTConfig, ledger
from lighter_freezers.gpt.model import rotated
from lighter_freezers.ledger import Hold

SMALL = {"block_size": 16, "vocab_size": 61, "n_layer": 2, "n_head": 2, "n_embd": 16}


def small(**changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SMALL, **changes}))


def tokens(batch: int = 3, time: int = 16) -> torch.Tensor:
    return torch.randint(61, (batch, time), generator=torch.Generator().manual_seed(1))


def test_logits_and_gradients_equal_those_of_transformers_gpt2() -> None:
    """The same weights in an independent implementation; its linear layers are stored transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = small(bias=True)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=61,
            n_positions=16,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    )
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {k: v.T if k.endswith(transposed) else v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(weights)
    logits, loss = ours(tokens(), tokens())
    reference = theirs(tokens())

    assert torch.allclose(logits, reference.logits, atol=1e-5)
    assert loss is not None
    loss.backward()
    F.cross_entropy(reference.logits.view(-1, 61), tokens().view(-1)).backward()
    gradient = theirs.transformer.h[0].attn.c_attn.weight.grad
    assert torch.allclose(ours.transformer.h[0].attn.c_attn.weight.grad, gradient.T, atol=1e-6)


def test_parameters_are_called_as_in_nanogpt() -> None:
    """Checkpoints and layer names rely on it."""
    block = [
        "ln_1.weight",
        "attn.c_attn.weight",
        "attn.c_proj.weight",
        "ln_2.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
    ]
    names = [
        "wte.weight",
        "wpe.weight",
        *(f"h.{n}.{part}" for n in range(2) for part in block),
        "ln_f.weight",
    ]

    assert [name for name, _ in small().named_parameters()] == [f"transformer.{name}" for name in names]
    assert "lm_head.weight" in small().state_dict()
    model, untied = small(), small(tie_weights=False)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert untied.lm_head.weight is not untied.transformer.wte.weight


def test_there_are_no_buffers_and_rotary_has_no_position_table() -> None:
    """No mask and no table of angles: nothing but weights is saved or moved."""
    model = small(use_rotary_embeddings=True)

    assert not list(model.buffers())
    assert not any("wpe" in name for name in model.state_dict())


@pytest.mark.parametrize("rotary", [False, True])
def test_no_position_sees_what_comes_after(rotary: bool) -> None:
    """Changing the last tokens leaves the logits before them alone, bit for bit."""
    torch.set_num_threads(1)
    model, changed = small(use_rotary_embeddings=rotary), tokens()
    changed[:, 10:] = (changed[:, 10:] + 1) % 61

    before, after = model(tokens())[0], model(changed)[0]
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


def test_rotary_products_depend_on_the_distance_only() -> None:
    """Query at 7 and key at 4 as query at 3 and key at 0; lengths are kept."""
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    q, k = rotated(query.expand(1, 1, 9, 8)), rotated(key.expand(1, 1, 9, 8))
    products = (q @ k.transpose(-1, -2))[0, 0]

    assert torch.allclose(products[7, 4], products[3, 0], atol=1e-5)
    assert not torch.allclose(products[7, 4], products[7, 0], atol=1e-2)
    assert torch.allclose(q.norm(dim=-1), query.norm(dim=-1).expand(1, 1, 9), atol=1e-5)


def test_the_initial_loss_is_that_of_a_guess() -> None:
    """About ln(vocabulary), by the initial deviations."""
    _, loss = small()(tokens(), tokens().flip(1))

    assert loss is not None
    assert loss.item() == pytest.approx(torch.log(torch.tensor(61.0)).item(), abs=0.1)
    projection = small(n_embd=128, n_layer=8).transformer.h[0].mlp.c_proj.weight
    assert projection.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_targets_without_a_loss_are_left_out() -> None:
    """Torch's default ignore_index: the mean is over the others."""
    targets = tokens()
    targets[:, :8] = F.cross_entropy.__defaults__[2]
    logits, loss = small()(tokens(), targets)

    expected = F.cross_entropy(logits[:, 8:].reshape(-1, 61), tokens()[:, 8:].reshape(-1))
    assert torch.allclose(loss, expected)


def test_greedy_generation_takes_the_most_likely_token() -> None:
    """And draws from the k most likely with `top_k`; 1 is greedy too. Longer than block_size works."""
    model = small().eval()
    greedy = model.generate(tokens(1, 12), 8, temperature=0)

    assert greedy.shape == (1, 20)
    assert torch.equal(greedy[:, 12], model(tokens(1, 12))[0][:, -1].argmax(-1))
    assert torch.equal(greedy, model.generate(tokens(1, 12), 8, temperature=0.7, top_k=1))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_head": 3}, ValueError, "n_embd=16 is not a multiple of n_head=3"),
        ({"n_layer": 0}, ValueError, "n_layer must be at least 1"),
        ({"vocab_size": "1024"}, TypeError, "vocab_size must be a whole number"),
        ({"dropout": 1.0}, ValueError, r"dropout must be a number in \[0, 1\)"),
        ({"bias": "no"}, TypeError, "bias must be true or false"),
        ({"n_head": 16, "use_rotary_embeddings": True}, ValueError, "pairs of channels, but a head has 1"),
    ],
)
def test_an_impossible_size_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    """When the config is read, with the way out."""
    with pytest.raises(error, match=message):
        small(**changes)


def test_a_mapping_is_a_config() -> None:
    """As YAML has it; an unknown key comes back with the known ones."""
    assert GPT(SMALL).config == GPTConfig(**SMALL)
    with pytest.raises(ValueError, match="does not know n_layers. It knows block_size, vocab_size, n_layer"):
        GPT({**SMALL, "n_layers": 2})


def test_a_sequence_that_is_too_long_is_refused() -> None:
    """With both lengths."""
    with pytest.raises(ValueError, match="17 tokens is longer than block_size=16"):
        small()(tokens(1, 17))


def test_layers_freeze_and_thaw_by_name() -> None:
    """The guide's names; the returned count is of elements that changed."""
    model = small()
    assert model.freeze_layer("attn.1") == 4 * 16 * 16
    assert model.freeze_layer("attn.1") == 0
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        "transformer.h.1.attn.c_attn.weight",
        "transformer.h.1.attn.c_proj.weight",
    ]
    assert model.unfreeze_layer("attn.1") == 4 * 16 * 16


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("attn.7", "Layer index 7 out of range: .* 2 layers"),
        ("attn.-1", "attn.-1"),
        ("atn.0", "Unknown component 'atn'.*attn"),
        ("wtf", "wte"),
    ],
)
def test_a_bad_layer_name_is_an_error(layer: str, message: str) -> None:
    """Not a print that nobody reads."""
    with pytest.raises(ValueError, match=message):
        small().freeze_layer(layer)


def test_rotary_says_that_there_is_no_wpe() -> None:
    """Its positions are angles."""
    with pytest.raises(ValueError, match="no 'wpe'.*rotary"):
        small(use_rotary_embeddings=True).freeze_layer("wpe")


def test_freeze_layer_composes_with_other_holders() -> None:
    """A Freezer's hold outlasts `unfreeze_layer`, and the other way round."""
    model = small()
    hold = Hold(model.transformer.h[0].attn.parameters(), "Freezer")
    hold.take()
    model.freeze_layer("attn.0")
    hold.let_go()
    assert ledger.holders(model.transformer.h[0].attn.c_attn.weight) == ("freeze_layer",)
    hold.take()

    assert model.unfreeze_layer("attn.0") == 0
    assert len(hold.let_go()) == 2


def test_counts_by_component() -> None:
    """A tied head is counted once, under wte; frozen and trainable add up."""
    model = small()
    model.freeze_layer("mlp.0")
    counts = model.get_detailed_param_count()

    assert list(counts) == [
        "wte",
        "wpe",
        "ln_1.0",
        "attn.0",
        "ln_2.0",
        "mlp.0",
        "ln_1.1",
        "attn.1",
        "ln_2.1",
        "mlp.1",
        "ln_f",
        "total",
    ]
    assert counts["mlp.0"] == {"total": 8 * 16 * 16, "trainable": 0, "frozen": 8 * 16 * 16}
    assert counts["total"]["total"] == sum(p.numel() for p in model.parameters())
    assert sum(c["trainable"] for c in counts.values()) == 2 * counts["total"]["trainable"]


def test_a_freezer_finds_a_tied_head_by_either_name() -> None:
    """`lm_head.weight` and `transformer.wte.weight` are one parameter."""
    for name in ("lm_head.weight", "transformer.wte.weight"):
        model = small()
        (rule,) = Freezer(names=name).rules()
        assert list(rule.selector.select(model)) == ["transformer.wte.weight"]
