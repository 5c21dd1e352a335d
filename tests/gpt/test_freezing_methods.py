"""Freezing by layer name and as a whole trunk: through the ledger, so that it composes with every Freezer."""

import warnings
from collections.abc import Callable

import pytest
import torch

from lighter_freezers import GPT, Freezer
from lighter_freezers.engine import ledger
from lighter_freezers.engine.ledger import Hold
from tests.gpt.networks import classifier, scorer, small, tokens, with_cls


def trained(model: GPT) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


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
    ("model", "layer", "num_elements"),
    [
        (classifier, "classifier_head", 16 * 3 + 3),
        (scorer, "sequence_head", 16 + 1),
        (scorer, "cls_embedding", 16),
    ],
)
def test_heads_freeze_by_name(model: Callable[[], GPT], layer: str, num_elements: int) -> None:
    """As they are called in the model."""
    network = model()

    assert network.freeze_layer(layer) == num_elements
    assert network.get_detailed_param_count()[layer]["frozen"] == num_elements
    assert network.unfreeze_layer(layer) == num_elements


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("attn.7", "Layer index 7 out of range: .* 2 layers"),
        ("attn.-3", "attn.-3"),
        ("atn.0", "Unknown component 'atn'.*attn"),
        ("wtf", "wte"),
    ],
)
def test_a_bad_layer_name_is_an_error(layer: str, message: str) -> None:
    """Not a print."""
    with pytest.raises(ValueError, match=message):
        small().freeze_layer(layer)


def test_the_head_of_another_mode_is_an_error_that_names_the_own() -> None:
    """A classifier has no lm_head."""
    with pytest.raises(ValueError, match="Unknown layer 'lm_head': GPT has classifier_head, ln_f"):
        classifier().freeze_layer("lm_head")


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


def test_a_frozen_trunk_leaves_the_head_to_train() -> None:
    """By config and by method; its gradients are cleared and it computes none."""
    by_config, by_method = classifier(freeze_transformer=True), classifier()
    by_method.loss(tokens(), tokens() % 3).backward()
    num_elements = sum(parameter.numel() for parameter in by_method.transformer.parameters())

    assert by_method.freeze_transformer_weights() == num_elements
    for model in (by_config, by_method):
        assert model.get_frozen_status()
        assert trained(model) == {"classifier_head.weight", "classifier_head.bias"}
        assert all(parameter.grad is None for parameter in model.transformer.parameters())
    assert by_config.unfreeze_transformer_weights() == num_elements
    assert not by_config.get_frozen_status()
    assert trained(by_config) == dict(by_config.named_parameters()).keys()


def test_the_cls_embedding_trains_above_a_frozen_trunk() -> None:
    """Gradients pass through the trunk to reach it."""
    model = scorer(freeze_transformer=True)
    model.loss(with_cls(), torch.zeros(3)).backward()

    assert trained(model) == {"cls_embedding", "sequence_head.weight", "sequence_head.bias"}
    assert all(dict(model.named_parameters())[name].grad is not None for name in trained(model))
    assert all(parameter.grad is None for parameter in model.transformer.parameters())


def test_a_tied_head_is_frozen_with_the_trunk_and_says_so() -> None:
    """An untied one goes on training, without a word."""
    with pytest.warns(UserWarning, match="lm_head is tied to transformer.wte.*tie_weights: false"):
        tied = small(freeze_transformer=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        untied = small(freeze_transformer=True, tie_weights=False)

    assert tied.get_frozen_status()
    assert trained(tied) == set()
    assert untied.get_frozen_status()
    assert trained(untied) == {"lm_head.weight"}
    untied.loss(tokens(), tokens()).backward()
    assert tied.unfreeze_transformer_weights() == sum(p.numel() for p in tied.parameters())


def test_one_trained_parameter_is_not_a_frozen_trunk() -> None:
    """The status is about all of it."""
    model = classifier(freeze_transformer=True)
    model.unfreeze_layer("ln_f")

    assert not model.get_frozen_status()
    assert trained(model) == {"transformer.ln_f.weight", "classifier_head.weight", "classifier_head.bias"}


def test_to_unfreeze_the_trunk_thaws_what_the_user_froze_but_not_what_a_freezer_holds() -> None:
    """By layer or by the trunk; a Freezer's part has to wait."""
    model = classifier(freeze_transformer=True)
    model.freeze_layer("attn.0")
    held = list(model.transformer.h[1].mlp.parameters())
    hold = Hold(held, "Freezer")
    hold.take()
    model.unfreeze_transformer_weights()

    assert not any(parameter.requires_grad for parameter in held)
    assert len(trained(model)) == len(list(model.parameters())) - len(held)
    assert len(hold.let_go()) == len(held)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_to_freeze_twice_is_to_freeze_once() -> None:
    """One call thaws."""
    model = classifier(freeze_transformer=True)

    assert model.freeze_transformer_weights() == 0
    model.unfreeze_transformer_weights()
    assert not model.get_frozen_status()


def test_counts_by_component() -> None:
    """A tied head is counted once, under wte; frozen and trainable add up."""
    model = small()
    model.freeze_layer("mlp.0")
    counts = model.get_detailed_param_count()
    block = ["ln_1", "attn", "ln_2", "mlp"]

    assert list(counts) == [
        *("wte", "wpe"),
        *(f"{part}.{index}" for index in range(2) for part in block),
        *("ln_f", "total"),
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
