"""`resize_lora_layer` on real PEFT layers: Linear, Conv1D, Embedding, Conv2d; plain, rsLoRA, DoRA."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import resize_lora_layer
from lighter_freezers.engine import ledger
from lighter_freezers.lora.rank_zero import shorten_forward
from tests.lora.lora_lab import KINDS, VARIANTS, adapted, delta, inputs, steps, trained

CELLS = [(kind, variant) for kind in KINDS for variant in VARIANTS]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 0.0}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("kind", "variant"), CELLS)
def test_growth_keeps_the_function(kind: str, variant: str, dtype: torch.dtype) -> None:
    """Within 1e-6 in float32, exactly in bfloat16; and every new component has a gradient to grow by."""
    model, x = trained(kind, dtype=dtype, **VARIANTS[variant]), inputs(kind, dtype)
    before, scaling = model(x).detach(), model.target.scaling["default"]
    change = resize_lora_layer(model.target, 12)
    after = model(x)

    assert (change.rank_before, change.rank_after, change.num_kept) == (8, 12, 8)
    assert change.discarded == 0.0
    assert (after.detach() - before).abs().max() <= TOLERANCE[dtype] * before.abs().max()
    assert model.target.scaling["default"] == scaling
    after.float().square().mean().backward()
    factors = _factors(model.target)
    gradient = factors[0].grad[8:] if kind == "Embedding" else factors[1].grad[:, 8:]
    assert gradient.flatten(1).any(dim=0 if kind != "Embedding" else 1).all()


@pytest.mark.parametrize("rank", [1, 5, 7])
@pytest.mark.parametrize(("kind", "variant"), CELLS)
def test_shrinking_is_the_optimum(kind: str, variant: str, rank: int) -> None:
    """Of the whole update, as torch.linalg.svd of it says; the loss reported includes the scaling."""
    model = trained(kind, **VARIANTS[variant])
    magnitude = [p.clone() for n, p in model.named_parameters() if "magnitude" in n]
    full = delta(model)
    change = resize_lora_layer(model.target, rank)
    optimum = float(torch.linalg.svdvals(full)[rank:].square().sum().sqrt())

    assert float((full - delta(model)).norm()) == pytest.approx(optimum, rel=1e-6)
    assert change.discarded == pytest.approx(optimum, rel=1e-6)
    assert all(map(torch.equal, magnitude, [p for n, p in model.named_parameters() if "magnitude" in n]))
    assert model(inputs(kind)).isfinite().all()


@pytest.mark.parametrize(("kind", "variant"), CELLS)
def test_peft_computes_the_same_scaling_from_what_the_layer_says(kind: str, variant: str) -> None:
    """`lora_alpha` follows the rank, so PEFT's own methods do not fall back to another scaling."""
    model = trained(kind, **VARIANTS[variant])
    layer: Any = model.target
    for rank in (3, 13, 7):
        resize_lora_layer(layer, rank)
        scaling = layer.scaling["default"]
        layer.set_scale("default", 1.0)

        assert layer.scaling["default"] == scaling
        assert layer.r["default"] == rank


@pytest.mark.parametrize("on_zero", ["drop", "merge", "freeze"])
@pytest.mark.parametrize(("kind", "variant"), CELLS)
def test_rank_zero(kind: str, variant: str, on_zero: Any) -> None:
    """`drop` loses the update and says how much, `merge` and `freeze` keep the function."""
    model, x = trained(kind, **VARIANTS[variant]), inputs(kind)
    before, full = model(x), delta(model)
    base = model.target.get_base_layer().weight.detach().clone()
    change = resize_lora_layer(model.target, 0, on_zero=on_zero, model=model)
    after = model(x)

    if on_zero == "drop":
        reference = _without_components(kind, variant)
        assert torch.allclose(after, reference(x), atol=1e-6)
        assert change.discarded == pytest.approx(float(full.norm()), rel=1e-6)
    else:
        assert torch.allclose(after, before, atol=2e-6)
        assert change.discarded == 0.0
    assert torch.equal(base, model.target.get_base_layer().weight) == (on_zero != "merge")
    factors = _factors(model.target)
    if on_zero == "freeze":
        assert [p.requires_grad for p in factors] == [False, False]
        assert tuple(map(id, change.frozen)) == tuple(map(id, factors))
    elif kind != "Conv2d":
        assert factors[0].numel() == factors[1].numel() == 0


def _without_components(kind: str, variant: str) -> nn.Module:
    """The same trained model, its update zero and all the rest as it was: what PEFT itself then computes."""
    model = trained(kind, **VARIANTS[variant])
    with torch.no_grad():
        for factor in _factors(model.target):
            factor.zero_()
    return model


def _factors(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    if "default" in layer.lora_embedding_A:
        return layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


@pytest.mark.parametrize("on_zero", ["drop", "merge", "freeze"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_comes_back_from_rank_zero_and_learns(kind: str, on_zero: Any) -> None:
    """It trains at rank 0, where nothing of it moves, and after."""
    model, x = trained(kind), inputs(kind)
    model.head.requires_grad_(True)  # so that something trains while the adapter does not
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    steps(model, optimizer, x)
    resize_lora_layer(model.target, 0, on_zero=on_zero, model=model, optimizers=[optimizer])
    frozen = [p.detach().clone() for p in _factors(model.target)]
    steps(model, optimizer, x)
    assert all(map(torch.equal, frozen, _factors(model.target)))

    at_zero = model(x)
    change = resize_lora_layer(model.target, 8 if on_zero == "freeze" else 5, optimizers=[optimizer])
    assert torch.equal(model(x), at_zero)
    assert len(change.thawed) == (2 if on_zero == "freeze" else 0)
    losses = steps(model, optimizer, x, 20)
    assert losses[-1] < losses[0]
    assert all(p.any() for p in _factors(model.target))


@pytest.mark.parametrize("kind", KINDS)
def test_the_optimizer_knows_the_same_parameters(kind: str) -> None:
    """Identity, group positions and the number of groups stay, and the next steps move what is new."""
    model, x = trained(kind), inputs(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    steps(model, optimizer, x)
    before = [id(p) for p in optimizer.param_groups[0]["params"]]
    for rank in (12, 3, 9):
        change = resize_lora_layer(model.target, rank, optimizers=[optimizer])
        assert change.replaced == ()
        start = [p.detach().clone() for p in _factors(model.target)]
        steps(model, optimizer, x)
        assert not any(map(torch.equal, start, _factors(model.target)))
        assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in _factors(model.target))

    assert [id(p) for p in optimizer.param_groups[0]["params"]] == before


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_another_adapter_of_the_layer_is_left_alone() -> None:
    """Ranks belong to adapters."""
    from peft import LoraConfig, inject_adapter_in_model

    model = trained("Linear")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["target"]), model, adapter_name="other")
    other = model.target.lora_A["other"].weight
    resize_lora_layer(model.target, 4, "other")

    assert model.target.r == {"default": 8, "other": 4}
    assert model.target.lora_A["other"].weight is other
    assert model.target.lora_A["default"].weight.shape == (8, 32)


def test_a_frozen_adapter_stays_frozen() -> None:
    """With any holder, and whatever torch allows: the ledger sets the flag."""
    model = trained("Linear")
    hold = ledger.Hold(_factors(model.target), "Freezer")
    hold.take()
    resize_lora_layer(model.target, 12)
    resize_lora_layer(model.target, 0)
    resize_lora_layer(model.target, 4)

    assert [p.requires_grad for p in _factors(model.target)] == [False, False]
    assert [ledger.holders(p) for p in _factors(model.target)] == [("Freezer",)] * 2
    assert len(hold.let_go()) == 2


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        ("8", TypeError, "whole number.*Remove the quotes"),
        (True, TypeError, "whole number"),
        (-1, ValueError, "-1 is impossible.*24 x 32.*0 to 24"),
        (25, ValueError, "25 is impossible.*0 to 24"),
    ],
)
def test_impossible_ranks_are_refused(rank: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resize_lora_layer(adapted("Linear").target, rank)


def test_what_cannot_be_resized_says_why() -> None:
    """Before anything has changed."""
    model = adapted("Linear")
    with pytest.raises(TypeError, match="no adapter 'othr'.*'default'"):
        resize_lora_layer(model.target, 4, "othr")
    with pytest.raises(TypeError, match="no LoRA layer"):
        resize_lora_layer(model.head, 4)
    with pytest.raises(ValueError, match="needs model"):
        resize_lora_layer(model.target, 0, on_zero="merge")
    with pytest.raises(ValueError, match="on_zero must be one of"):
        resize_lora_layer(model.target, 0, on_zero="drp")
    with pytest.raises(ValueError, match="needs statistics"):
        resize_lora_layer(model.target, 4, shrink="kfac")
    with pytest.raises(ValueError, match="DoRA"):
        resize_lora_layer(adapted("Linear", use_dora=True).target, 4, shrink="kfac")
    model.target.merge()
    with pytest.raises(RuntimeError, match="is merged"):
        resize_lora_layer(model.target, 4)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer:UserWarning")
def test_layers_that_peft_computes_otherwise_are_refused() -> None:
    """Grouped convolutions and attention modules, by name."""
    from peft import LoraConfig, inject_adapter_in_model

    model = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 1, groups=4), "attn": nn.MultiheadAttention(8, 2)})
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["conv", "attn"]), model)
    with pytest.raises(RuntimeError, match="grouped convolution"):
        resize_lora_layer(model["conv"], 2)
    with pytest.raises(RuntimeError, match="MultiheadAttention"):
        resize_lora_layer(model["attn"], 2)


def test_a_merge_into_a_tied_or_quantised_weight_is_refused() -> None:
    """It would change another layer, or be rounded away. Nothing has changed then."""
    from peft import LoraConfig, inject_adapter_in_model

    model = nn.ModuleDict({"wte": nn.Embedding(32, 24), "head": nn.Linear(24, 32, bias=False)})
    model["head"].weight = model["wte"].weight
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["wte"]), model)
    weight = model["wte"].weight.detach().clone()
    with pytest.raises(RuntimeError, match="tied.*'drop' or 'freeze'"):
        resize_lora_layer(model["wte"], 0, on_zero="merge", model=model)
    assert torch.equal(model["head"].weight, weight)
    assert model["wte"].r["default"] == 4

    single = trained("Linear")
    base = single.target.get_base_layer()
    base.weight = nn.Parameter(torch.zeros(24, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(RuntimeError, match="quantised.*int8"):
        resize_lora_layer(single.target, 0, on_zero="merge", model=single)


def test_a_bias_of_the_adapter_outlives_its_components() -> None:
    """`lora_bias` has an effect at rank 0 too, unless it was merged with them."""
    x = inputs("Linear")
    for on_zero in ("drop", "merge"):
        model = trained("Linear", lora_bias=True)
        full, part = model(x), _without_components_of(model, x)
        resize_lora_layer(model.target, 0, on_zero=on_zero, model=model)

        assert torch.allclose(model(x), part if on_zero == "drop" else full, atol=2e-6)


def _without_components_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    import copy

    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.target.lora_A["default"].weight.zero_()
    return twin(x)


def test_the_same_generator_draws_the_same_components() -> None:
    """And torch's own generator is not touched by it."""
    rows = []
    for _ in range(2):
        model = trained("Linear")
        state = torch.get_rng_state()
        resize_lora_layer(model.target, 12, generator=torch.Generator().manual_seed(3))
        assert torch.equal(state, torch.get_rng_state())
        rows.append(_factors(model.target)[0].detach())

    assert torch.equal(*rows)


def test_a_forward_of_other_code_stays() -> None:
    """As accelerate puts one on the layer itself."""
    model, x = trained("Linear"), inputs("Linear")
    usual = model.target.forward
    model.target.forward = own = lambda *given, **named: usual(*given, **named)
    resize_lora_layer(model.target, 0)
    shorten_forward(model.target)

    assert model.target.forward is own
    assert torch.equal(model.target(x), model.target.base_layer(x))
