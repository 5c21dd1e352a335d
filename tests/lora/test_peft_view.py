"""PEFT's own view of a model whose ranks have changed is that of a model made with these ranks."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lighter_freezers import resize_lora_layer, set_layer_lora_rank
from lighter_freezers.lora.restore import install_rank_restore
from lighter_freezers.lora.set_rank import resize_sites
from lighter_freezers.lora.sites import find_lora_sites
from tests.lora.stock_peft import X, base

pytestmark = pytest.mark.filterwarnings("ignore:Already found:UserWarning")
TARGETS = ["emb", "q", "k"]


def resized(ranks: tuple[int, int, int], **options: Any) -> Any:
    """A model whose three layers had rank 4."""
    model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, **options))
    fill(model)
    sites = find_lora_sites(model)
    resize_sites(model, dict(zip(sites, ranks, strict=True)), sites)
    return model


def fill(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)


def stock(model: Any, ranks: tuple[int, int, int], **options: Any) -> Any:
    """What PEFT makes of these ranks from the start, with the same factors."""
    kept = {name: rank for name, rank in zip(TARGETS, ranks, strict=True) if rank}
    alphas = {name: 1.5 * rank for name, rank in kept.items()}
    if options.get("use_rslora"):
        alphas = {name: 3.0 * rank**0.5 for name, rank in kept.items()}
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=[*kept], rank_pattern=kept, alpha_pattern=alphas, **options
    )
    twin = get_peft_model(base(), config)
    state = {name: p for name, p in model.state_dict().items() if "lora_" in name and p.numel()}
    assert not twin.load_state_dict(state, strict=False).unexpected_keys
    return twin


VIEWS: dict[str, Callable[[Any], Any]] = {
    "merge_and_unload": lambda model: model.merge_and_unload()(X),
    "unload": lambda model: model.unload()(X),
    "print_trainable_parameters": lambda model: model.get_nb_trainable_parameters()[0],
    "svd": lambda model: weighted(model, "svd"),
    "cat": lambda model: weighted(model, "cat"),
    "merge_adapter": lambda model: [model.merge_adapter(), model(X), model.unmerge_adapter(), model(X)],
    "scale": lambda model: [layer.scaling["default"] for layer in find_layers(model) if layer.r["default"]],
    "add_adapter": lambda model: added(model),
}


def find_layers(model: nn.Module) -> list[Any]:
    return [site.factors.layer for site in find_lora_sites(model).values()]


def weighted(model: Any, kind: str) -> list[torch.Tensor]:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["k"], init_lora_weights=True))
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type=kind)
    model.set_adapter("both")
    mixed = model(X)
    model.set_adapter("default")
    before = model(X)
    model.delete_adapter("both")
    return [mixed, before, model(X)]


def added(model: Any) -> list[torch.Tensor]:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q", "k"]))
    return [model(X), sorted(model.peft_config)]  # type: ignore[list-item]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, atol=1e-5)
    if isinstance(one, list):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_peft_sees_what_it_would_have_made(view: str, options: dict[str, Any]) -> None:
    """Grown, shrunk and without any."""
    ranks = (7, 0, 2)
    model = resized(ranks, **options)
    twin = stock(model, ranks, **options)
    assert torch.allclose(model(X), twin(X), atol=1e-6)
    torch.manual_seed(1)
    expected = VIEWS[view](twin)
    torch.manual_seed(1)
    assert same(VIEWS[view](model), expected)


def test_disable_adapter_gives_the_base() -> None:
    model = resized((7, 0, 2))
    with model.disable_adapter():
        assert torch.equal(model(X), base()(X))
    assert not torch.equal(model(X), base()(X))


def test_the_config_has_the_ranks() -> None:
    """In PEFT's words; a layer that grows again is excluded no more, and what the user excluded stays so."""
    model = resized((7, 0, 4), exclude_modules=["head"])
    config = model.peft_config["default"]
    assert config.rank_pattern == {"emb": 7}
    assert config.alpha_pattern == {"emb": 10.5}
    assert config.exclude_modules == r"(?:.*\.)?head|q"
    assert (config.r, config.lora_alpha) == (4, 6)

    set_layer_lora_rank(model, "q", 3)
    config = model.peft_config["default"]
    assert config.rank_pattern == {"emb": 7, "q": 3}
    assert config.exclude_modules == {"head"} or config.exclude_modules == ["head"]
    resize_lora_layer(find_layers(model)[1], 5, model=model)
    assert model.peft_config["default"].rank_pattern == {"emb": 7, "q": 5}


def test_save_pretrained_of_peft_can_be_loaded(tmp_path: Any) -> None:
    model = resized((7, 0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(base(), tmp_path)
    assert torch.equal(loaded(X), model(X))


def test_a_checkpoint_brings_the_view_with_it() -> None:
    """The ranks are in the weights."""
    model = resized((7, 0, 2))
    twin = get_peft_model(base(), LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS))
    install_rank_restore(twin)
    twin.load_state_dict(model.state_dict())

    assert twin.peft_config["default"].rank_pattern == {"emb": 7, "k": 2}
    assert twin.peft_config["default"].exclude_modules == "q"
    assert torch.equal(twin(X), model(X))
    assert "forward" in find_layers(twin)[1].__dict__


def test_rank_zero_calls_the_base_alone() -> None:
    """The tree, hooks and optimizers see no difference; copies have their own; growth brings PEFT's back."""
    model = resized((4, 4, 4))
    keys, calls = list(model.state_dict()), []
    layer = find_layers(model)[1]
    layer.register_forward_hook(lambda *_: calls.append("layer"))
    layer.base_layer.register_forward_hook(lambda *_: calls.append("base"))
    layer.lora_dropout["default"].register_forward_hook(lambda *_: calls.append("adapter"))
    set_layer_lora_rank(model, "q", 0, on_zero="drop")
    model(X)
    assert calls == ["base", "layer"]
    assert list(model.state_dict()) == keys

    bare, x = copy.deepcopy(layer), torch.randn(2, 16)
    for module in bare.modules():
        module._forward_hooks.clear()  # a lambda cannot be pickled
    for twin in (copy.deepcopy(bare), pickle.loads(pickle.dumps(bare))):
        assert torch.equal(twin(x), bare(x))
        with torch.no_grad():
            twin.base_layer.bias.add_(1)
        assert not torch.equal(twin(x), bare(x))
    calls.clear()
    set_layer_lora_rank(model, "q", 2)
    assert "forward" not in layer.__dict__
    model(X).sum().backward()
    assert layer.lora_B["default"].weight.grad is not None


def test_where_nothing_trains_the_loss_keeps_a_graph() -> None:
    """All layers at rank 0 on a frozen base: a step does nothing, as it did before."""
    model = resized((0, 0, 0))
    model(X).sum().backward()
    assert not any("forward" in layer.__dict__ for layer in find_layers(model))


@pytest.mark.parametrize("other", ["another adapter", "a bias", "a merged adapter"])
def test_what_acts_at_rank_zero_acts(other: str) -> None:
    """A second adapter that is active, a LoRA bias, a merge."""
    model = resized((2, 4, 2), lora_bias=False)
    layer = find_layers(model)[1]
    if other == "a bias":
        model = get_peft_model(base(), LoraConfig(r=4, target_modules=["q", "k"], lora_bias=True))
        fill(model)
        layer = find_layers(model)[0]
    expected = model(X)
    set_layer_lora_rank(model, "q", 0, on_zero="drop")
    assert not torch.equal(model(X), expected)
    if other == "another adapter":
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q"], init_lora_weights=False))
        before = model(X)
        model.base_model.set_adapter(["default", "other"])
        assert not torch.equal(model(X), before)
    elif other == "a merged adapter":
        before = model(X)
        model.merge_adapter()
        assert torch.allclose(model(X), before, atol=1e-6)
        model.unmerge_adapter()
        assert torch.allclose(model(X), before, atol=1e-6)
    else:
        with model.disable_adapter():
            assert torch.equal(model(X), base()(X))
        assert "forward" not in layer.__dict__
