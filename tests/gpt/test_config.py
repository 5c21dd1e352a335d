"""A config settles its values, and refuses what cannot be meant."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers.gpt import GPTConfig, ModelMode
from tests.gpt.networks import CLASSIFIER, SCORER, SMALL


def made(**changes: Any) -> GPTConfig:
    return GPTConfig(**{**SMALL, **changes})


def test_the_default_is_a_causal_language_model() -> None:
    """Existing configs mean what they meant."""
    assert GPTConfig().mode is ModelMode.LANGUAGE_MODEL
    assert GPTConfig().attention_type == "causal"
    assert not GPTConfig().freeze_transformer


@pytest.mark.parametrize("mode", [ModelMode.TOKEN_CLASSIFIER, "token_classifier"])
def test_a_mode_is_a_member_or_its_word(mode: str) -> None:
    """Python writes the one, YAML the other."""
    config = made(mode=mode, num_token_classes=3)

    assert config.mode is ModelMode.TOKEN_CLASSIFIER
    assert config.attention_type == "bidirectional"
    assert f"{config.mode}" == "token_classifier"


@pytest.mark.parametrize("needs", [CLASSIFIER, SCORER])
def test_causal_attention_is_switched_with_a_warning(needs: dict[str, Any]) -> None:
    """It says how to keep it."""
    with pytest.warns(UserWarning, match="bidirectional now, not causal.*force_attention_type: true"):
        assert made(**needs, attention_type="causal").attention_type == "bidirectional"


def test_causal_attention_can_be_forced() -> None:
    """A classifier may look back only; a scorer may, with a warning that [CLS] sees nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = made(**CLASSIFIER, attention_type="causal", force_attention_type=True)
        masked = made(attention_type="bidirectional")
    with pytest.warns(UserWarning, match="sees only itself"):
        made(**SCORER, attention_type="causal", force_attention_type=True)

    assert (kept.attention_type, masked.attention_type) == ("causal", "bidirectional")


def test_values_are_settled_once_and_for_all() -> None:
    """A copy with a change, a YAML list, a Path and a mapping come to the same."""
    config = made(**CLASSIFIER, class_weights=[1, 2.0, 0], init_from_checkpoint=Path("a") / "b.pt")

    assert config.class_weights == (1.0, 2.0, 0.0)
    assert config.init_from_checkpoint == str(Path("a/b.pt"))
    assert replace(replace(config, n_layer=3), n_layer=2) == config
    assert len({config, replace(config)}) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mode": "classifier"}, ValueError, "must be one of language_model, token_classifier, sequence_sc"),
        ({"mode": "token_classifier"}, ValueError, "needs num_token_classes, at least 2. Got None"),
        ({**CLASSIFIER, "num_token_classes": 1}, ValueError, "at least 2. Got 1"),
        ({**CLASSIFIER, "num_token_classes": "3"}, TypeError, "num_token_classes must be a whole number"),
        ({"num_token_classes": 3}, ValueError, "num_token_classes is for mode: token_classifier"),
        ({**CLASSIFIER, "cls_token_id": 3}, ValueError, "cls_token_id is for mode: sequence_scorer"),
        ({**SCORER, "class_weights": "balanced"}, ValueError, "class_weights is for mode: token_classifier"),
        ({**CLASSIFIER, "class_weights": "equal"}, TypeError, "'balanced', or a list of 3 numbers"),
        (
            {**CLASSIFIER, "class_weights": [1, 2]},
            ValueError,
            "2 class_weights do not fit num_token_classes=3",
        ),
        ({**CLASSIFIER, "class_weights": [1, 2, -1]}, ValueError, "at least 0"),
        ({**CLASSIFIER, "class_weights": [0, 0, 0]}, ValueError, "one of them above 0"),
        ({**CLASSIFIER, "class_weights": [1, 2, "5e-5"]}, TypeError, r"class_weights\[2\] must be a number"),
        ({"mode": "sequence_scorer"}, ValueError, "needs cls_token_id"),
        ({**SCORER, "cls_token_id": 61}, ValueError, "set vocab_size to 62 or more"),
        ({**SCORER, "cls_token_id": -1}, ValueError, "counts from 0"),
        ({"attention_type": "full"}, ValueError, "attention_type must be one of causal, bidirectional"),
        ({"force_attention_type": True}, ValueError, "give that too"),
        ({"force_attention_type": "no"}, TypeError, "force_attention_type must be true or false"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index must be a whole number"),
        ({"head_on_supervised_only": "yes"}, TypeError, "head_on_supervised_only must be true or false"),
        ({"dropout": "0.1"}, TypeError, "dropout must be a number"),
        ({"freeze_transformer": "yes"}, TypeError, "freeze_transformer must be true or false"),
        ({"unfreeze_at_iteration": "2e3"}, TypeError, "unfreeze_at_iteration must be a whole number"),
        ({"unfreeze_at_iteration": -1}, ValueError, "counts from 0"),
        ({"unfreeze_lr_multiplier": "1e-1"}, TypeError, "unfreeze_lr_multiplier must be a number"),
        ({"unfreeze_lr_multiplier": 0}, ValueError, "unfreeze_lr_multiplier must be above 0"),
        ({"init_from_checkpoint": 3}, TypeError, "init_from_checkpoint must be a path"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    """With what to do."""
    with pytest.raises(error, match=message):
        made(**changes)


def test_to_thaw_what_is_not_frozen_is_a_warning() -> None:
    """An override that switches the freezing off leaves the iteration behind."""
    with pytest.warns(UserWarning, match="has no effect: the trunk is not frozen"):
        made(**CLASSIFIER, unfreeze_at_iteration=5)
