"""A whole model, its embeddings, its head, and what patterns find."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lighter_freezers.layers import (
    freeze_by_name,
    freeze_embeddings,
    freeze_lm_head,
    freeze_model,
    unfreeze_by_name,
    unfreeze_embeddings,
    unfreeze_lm_head,
    unfreeze_model,
)
from tests.architectures import ARCHITECTURES


@pytest.fixture(autouse=True)
def log_reaches_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's logger prints where logging is not configured."""
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)


def frozen_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def size(*modules: nn.Module) -> int:
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def test_a_whole_model_and_back() -> None:
    """Each element counts once, and only when it changes."""
    model = ARCHITECTURES["gpt2"]()

    assert freeze_model(model) == size(model)
    assert freeze_model(model) == 0
    assert unfreeze_model(model) == size(model)
    assert frozen_names(model) == []
    assert freeze_model(nn.ReLU()) == 0


def test_integer_tensors_are_left_alone() -> None:
    """A quantised weight cannot train."""
    model = nn.Module()
    model.quantised = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)
    model.weight = nn.Parameter(torch.ones(2), requires_grad=False)

    assert unfreeze_model(model) == 2
    assert frozen_names(model) == ["quantised"]


EMBEDDINGS: dict[str, Callable[[nn.Module], list[nn.Module]]] = {
    "llama": lambda m: [m.model.embed_tokens],
    "gpt2-classifier": lambda m: [m.transformer.wte, m.transformer.wpe],
    "bert-classifier": lambda m: [m.bert.embeddings],
    "vit": lambda m: [m.vit.embeddings],
    "t5": lambda m: [m.shared],
    "resnet18": lambda m: [m.conv1, m.bn1],
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_and_back(name: str) -> None:
    """With positions, classes, patches and norms; nothing else."""
    model = ARCHITECTURES[name]()
    embeddings = EMBEDDINGS[name](model)

    assert freeze_embeddings(model) == size(*embeddings)
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == size(*embeddings)
    assert unfreeze_embeddings(model) == size(*embeddings)
    assert frozen_names(model) == []


HEADS: dict[str, Callable[[nn.Module], list[nn.Module]]] = {
    "llama": lambda m: [m.lm_head],
    "bert-classifier": lambda m: [m.bert.pooler, m.classifier],
    "roberta": lambda m: [m.classifier],
    "vit": lambda m: [m.classifier],
    "ours-classifier": lambda m: [m.classifier_head],
    "resnet18": lambda m: [m.fc],
    "gpt2": lambda m: [m.lm_head],
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_and_back(name: str) -> None:
    """Whatever it is called; a tied one is the embedding too."""
    model = ARCHITECTURES[name]()
    head = HEADS[name](model)

    assert freeze_lm_head(model) == size(*head)
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == size(*head)
    assert unfreeze_lm_head(model) == size(*head)
    assert frozen_names(model) == []


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        (freeze_embeddings, "'transformer.wte.weight' is also the weight of the head"),
        (freeze_lm_head, "The head's weight is also 'transformer.wte.weight'"),
    ],
)
def test_a_tie_is_said(verb: Callable[..., int], sentence: str, caplog: pytest.LogCaptureFixture) -> None:
    """One tensor cannot be frozen as one and train as the other."""
    with caplog.at_level(logging.WARNING, "lighter_freezers"):
        verb(ARCHITECTURES["gpt2"]())

    assert sentence in caplog.text


def test_what_a_model_does_not_have_is_an_error() -> None:
    """No embeddings, no head."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    for verb in (freeze_embeddings, unfreeze_embeddings):
        with pytest.raises(ValueError, match="Sequential has no embeddings"):
            verb(model)
    for verb in (freeze_lm_head, unfreeze_lm_head):
        with pytest.raises(ValueError, match="Sequential has no head"):
            verb(model)


@pytest.mark.parametrize(
    ("patterns", "case_sensitive", "expected"),
    [
        (r"\.bias$", True, lambda name: name.endswith(".bias")),
        ([".*attention.*", ".*attn.*"], True, lambda name: "attention" in name),
        ("layernorm", False, lambda name: "LayerNorm" in name),
        (
            "^bert.encoder.layer.[01].",
            True,
            lambda name: name.startswith(("bert.encoder.layer.0", "bert.encoder.layer.1")),
        ),
    ],
    ids=["biases", "one of two", "any case", "layers"],
)
def test_by_name_and_back(
    patterns: str | list[str], case_sensitive: bool, expected: Callable[[str], bool]
) -> None:
    """What a regular expression is found in; patterns of a list need not all match."""
    model = ARCHITECTURES["bert-classifier"]()
    named = {name: parameter.numel() for name, parameter in model.named_parameters() if expected(name)}

    assert freeze_by_name(model, patterns, case_sensitive) == sum(named.values()) > 0
    assert frozen_names(model) == list(named)
    assert unfreeze_by_name(model, patterns, case_sensitive) == sum(named.values())
    assert frozen_names(model) == []


def test_a_tied_weight_is_found_by_each_of_its_names() -> None:
    """`lm_head` is not among the names that torch gives."""
    model = ARCHITECTURES["gpt2"]()
    assert not [name for name, _ in model.named_parameters() if "lm_head" in name]

    assert freeze_by_name(model, "lm_head") == model.lm_head.weight.numel()


def test_patterns_that_say_nothing() -> None:
    """No match names what is close; capital letters count unless told otherwise."""
    model = ARCHITECTURES["bert-classifier"]()
    with pytest.raises(ValueError, match="No parameter name matches 'layernorm'.*Closest names: .*LayerNorm"):
        freeze_by_name(model, "layernorm")
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression: missing \)"):
        freeze_by_name(model, "(")
    with pytest.raises(ValueError, match="patterns is empty"):
        unfreeze_by_name(model, [])
    for nothing in ("", [""], ["lm_head", ""]):  # found in every name
        with pytest.raises(ValueError, match="patterns must not be empty"):
            freeze_by_name(model, nothing)
    with pytest.raises(TypeError, match="patterns must be a text or a list of texts. Got 3"):
        freeze_by_name(model, 3)
    with pytest.raises(TypeError, match="case_sensitive must be true or false"):
        freeze_by_name(model, "bias", "false")
    assert frozen_names(model) == []


def test_lazy_layers_are_counted_by_their_tensors(caplog: pytest.LogCaptureFixture) -> None:
    """They have no elements yet, and freeze all the same."""
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        assert freeze_by_name(model, ".") == 10
        assert unfreeze_by_name(model, "^0") == 0
        assert unfreeze_by_name(model, "^0") == 0

    assert frozen_names(model) == ["1.weight", "1.bias"]
    frozen, thawed, again = caplog.messages
    assert frozen.endswith("10 parameters and 2 tensors of lazy layers are frozen now.")
    assert thawed.endswith("2 tensors of lazy layers train now.")
    assert again.endswith("all that can train already do.")
