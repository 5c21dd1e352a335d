"""Heads of pretrained models: what fits is loaded, the rest keeps its initial values and is reported."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import GPT, GPTConfig
from lighter_freezers.gpt.pretrained import load_pretrained
from tests.gpt.checkpoints import SMALL, logits_of, saved, small

CLASSIFIER: dict[str, Any] = {"mode": "token_classifier", "num_token_classes": 3}
SCORER: dict[str, Any] = {"mode": "sequence_scorer", "cls_token_id": 61, "vocab_size": 62}
CLASSIFIER_HEAD = ("classifier_head.weight", "classifier_head.bias")
SCORER_HEAD = ("cls_embedding", "sequence_head.weight", "sequence_head.bias")


def weights_of(model: GPT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("changes", "head", "grown"),
    [(CLASSIFIER, CLASSIFIER_HEAD, ()), (SCORER, SCORER_HEAD, ("transformer.wte.weight[61:62]",))],
    ids=["classifier", "scorer"],
)
def test_the_trunk_of_a_language_model_gets_another_head(
    changes: dict[str, Any], head: tuple[str, ...], grown: tuple[str, ...], tmp_path: Path
) -> None:
    """The new head is left alone, and that the old one is not used is no reason for alarm."""
    source, model = small(seed=5), small(**changes)
    before = weights_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = load_pretrained(model, saved(source.state_dict(), tmp_path / "w.pt"))

    trunk = weights_of(source)
    for name, tensor in model.state_dict().items():
        expected = before if name in head else trunk
        assert torch.equal(tensor[:61], expected[name][:61]), name
    assert torch.equal(model.transformer.wte.weight[61:], before["transformer.wte.weight"][61:])
    assert report.missing == head
    assert report.left_over == ("lm_head.weight",)
    assert report.grown == grown
    assert report.mismatched == ()


@pytest.mark.parametrize("changes", [CLASSIFIER, SCORER], ids=["classifier", "scorer"])
def test_a_head_of_the_same_shape_is_loaded(changes: dict[str, Any], tmp_path: Path) -> None:
    """A classifier goes on as the classifier it was, and a scorer with its [CLS]."""
    source, model = small(seed=5, **changes), small(**changes)
    report = load_pretrained(model, saved(source.state_dict(), tmp_path / "w.pt"))

    assert set(report.loaded) == set(model.state_dict())
    input_ids = torch.full((2, 16), 7).index_fill(1, torch.tensor([0]), 61 if changes is SCORER else 8)
    assert torch.equal(model(input_ids)[0], source(input_ids)[0])


def test_a_head_for_other_classes_is_not_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Five classes there, three here: the model's own head stays, with a log line."""
    source, model = small(seed=5, **{**CLASSIFIER, "num_token_classes": 5}), small(**CLASSIFIER)
    before = weights_of(model)
    with caplog.at_level("INFO", logger="lighter_freezers"):
        report = load_pretrained(model, saved(source.state_dict(), tmp_path / "w.pt"))

    assert report.mismatched == CLASSIFIER_HEAD
    assert torch.equal(model.classifier_head.weight, before["classifier_head.weight"])
    assert torch.equal(model.transformer.wte.weight, source.transformer.wte.weight)
    assert "of another shape there, so at initial values: classifier_head.weight" in caplog.text


def test_a_classifier_can_become_a_language_model(tmp_path: Path) -> None:
    """A tied head comes with the trunk; an untied one is new, because the checkpoint does not have it."""
    path = saved(small(seed=5, **CLASSIFIER).state_dict(), tmp_path / "w.pt")
    untied = small(tie_weights=False)
    before = weights_of(untied)

    assert load_pretrained(small(), path).missing == ()
    assert load_pretrained(untied, path).missing == ("lm_head.weight",)
    assert torch.equal(untied.lm_head.weight, before["lm_head.weight"])


@pytest.mark.parametrize("tie_weights", [False, True])
def test_a_head_of_classes_that_is_called_lm_head_is_not_mistaken(tie_weights: bool, tmp_path: Path) -> None:
    """Others call the head of a classifier `lm_head`: its three rows are not the first three tokens'."""
    source, model = small(seed=5), small(tie_weights=tie_weights)
    weights = {**weights_of(source), "lm_head.weight": torch.ones(3, 16)}
    report = load_pretrained(model, saved(weights, tmp_path / "w.pt"))

    assert report.mismatched == ("lm_head.weight",)
    assert not (model.lm_head.weight[:3] == 1).all()
    assert torch.equal(model.transformer.wte.weight, source.transformer.wte.weight)


def test_a_config_loads_before_it_freezes(tmp_path: Path) -> None:
    """`init_from_checkpoint` and `freeze_transformer` of one GPTConfig; the head trains."""
    source = small(seed=5)
    path = saved(source.state_dict(), tmp_path / "w.pt")
    model = GPT(GPTConfig(**SMALL, **CLASSIFIER, init_from_checkpoint=str(path), freeze_transformer=True))

    assert torch.equal(model.transformer.h[1].mlp.c_fc.weight, source.transformer.h[1].mlp.c_fc.weight)
    assert model.get_frozen_status()
    assert tuple(name for name, p in model.named_parameters() if p.requires_grad) == CLASSIFIER_HEAD
    assert torch.equal(logits_of(GPT({**SMALL, "init_from_checkpoint": str(path)})), logits_of(source))
