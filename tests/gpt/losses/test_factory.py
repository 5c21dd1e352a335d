"""Flat keys, as the guide writes them, become modifiers with these arguments; misspelt ones are errors."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from lighter_freezers.gpt.losses import (
    EntropyModifier,
    MaskRatioModifier,
    SequenceCorrelationModifier,
    SequenceVarianceModifier,
    TargetSmoothingModifier,
    create_loss_modifier_pipeline,
)

ALL: dict[str, Any] = {
    "loss_modifiers_enabled": True,
    "entropy_modifier_enabled": True,
    "entropy_modifier_weight": 2.0,
    "entropy_modifier_threshold": 0.1,
    "entropy_modifier_eps": 1e-6,
    "target_smoothing_enabled": True,
    "target_smoothing_factor": 0.2,
    "target_smoothing_special_tokens": "1,2",
    "target_smoothing_exclude_padding": True,
    "target_smoothing_padding_token": 0,
    "mask_ratio_weight_enabled": True,
    "mask_ratio_weight_power": 0.7,
    "mask_ratio_weight_min_weight": 0.3,
    "mask_ratio_weight_max_weight": 4.0,
    "mask_ratio_weight_eps": 1e-6,
    "sequence_variance_enabled": True,
    "sequence_variance_scale": 3.0,
    "sequence_variance_alpha": 1.2,
    "sequence_variance_eps": 1e-6,
    "sequence_correlation_enabled": True,
    "sequence_correlation_alpha": 2.0,
    "sequence_correlation_eps": 1e-6,
}


def test_the_example_of_the_guide() -> None:
    """Entropy and smoothing on, the mask ratio off."""
    pipeline = create_loss_modifier_pipeline(
        {
            "loss_modifiers_enabled": True,
            "entropy_modifier_enabled": True,
            "target_smoothing_enabled": True,
            "mask_ratio_weight_enabled": False,
        }
    )

    assert pipeline.get_enabled_modifier_names() == ["EntropyModifier", "TargetSmoothingModifier"]


def settings(modifier: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(modifier).items() if not key.startswith("_")}


def test_every_key_reaches_its_modifier() -> None:
    """All five, in the order that the pipeline states."""
    built = create_loss_modifier_pipeline(ALL)._modifiers
    expected = [
        EntropyModifier(2.0, 0.1, 1e-6),
        TargetSmoothingModifier(0.2, [1, 2, 0]),
        MaskRatioModifier(0.7, 0.3, 4.0, 1e-6),
        SequenceVarianceModifier(3.0, 1.2, 1e-6),
        SequenceCorrelationModifier(2.0, 1e-6),
    ]

    assert [(type(m), settings(m)) for m in built] == [(type(m), settings(m)) for m in expected]


def test_the_limits_have_a_short_spelling() -> None:
    """`_min` and `_max`; both spellings at once must agree."""
    config = {"loss_modifiers_enabled": True, "mask_ratio_weight_enabled": True, "mask_ratio_weight_min": 0.5}
    (built,) = create_loss_modifier_pipeline({**config, "mask_ratio_weight_max": 2.0})._modifiers

    assert isinstance(built, MaskRatioModifier)
    assert (built.min_weight, built.max_weight) == (0.5, 2.0)
    with pytest.raises(
        ValueError, match="mask_ratio_weight_min_weight is given in two spellings, as 0.5 and 0.6"
    ):
        create_loss_modifier_pipeline({**config, "mask_ratio_weight_min_weight": 0.6})


@dataclass
class TrainingRun:
    """A configuration with much else in it."""

    batch_size: int = 8
    learning_rate: float = 1e-4
    dropout: float = 0.1
    mask_probability: float = 0.5
    label_smoothing: float = 0.0
    entropy_coef: float = 0.01
    loss_modifiers_enabled: bool = True
    target_smoothing_enabled: bool = True


@pytest.mark.parametrize(
    "config", [TrainingRun(), vars(TrainingRun()), SimpleNamespace(**vars(TrainingRun()))]
)
def test_a_whole_training_configuration_may_be_given(config: Any) -> None:
    """As an object or a mapping; what is not about loss modifiers is passed over."""
    assert create_loss_modifier_pipeline(config).get_enabled_modifier_names() == ["TargetSmoothingModifier"]


def test_a_master_switch_turns_all_off() -> None:
    """Also in the configuration that has no key at all."""
    assert create_loss_modifier_pipeline({**ALL, "loss_modifiers_enabled": False}).is_empty
    assert create_loss_modifier_pipeline({}).is_empty


def test_a_missing_master_switch_is_asked_for() -> None:
    """Otherwise a modifier that was turned on would silently do nothing."""
    with pytest.raises(
        ValueError, match="entropy_modifier_enabled is true, but loss_modifiers_enabled is miss"
    ):
        create_loss_modifier_pipeline({"entropy_modifier_enabled": True})


@pytest.mark.parametrize(
    ("key", "closest"),
    [
        ("entropy_modifer_enabled", "entropy_modifier_enabled"),
        ("entropy_enabled", "entropy_modifier_enabled"),
        ("target_smoothing_alpha", "target_smoothing_factor"),
        ("mask_ratio_weight_minimum", "mask_ratio_weight_min"),
        ("sequence_variance_scaling", "sequence_variance_scale"),
        ("sequence_correlation", "sequence_correlation_eps"),
        ("loss_modifier_enabled", "loss_modifiers_enabled"),
    ],
)
def test_a_misspelt_key_comes_back_with_the_closest(key: str, closest: str) -> None:
    """In a mapping and in an object alike."""
    for config in ({**ALL, key: True}, SimpleNamespace(**ALL, **{key: True})):
        with pytest.raises(
            ValueError, match=f"There is no key '{key}' for loss modifiers. Closest: .*{closest}"
        ):
            create_loss_modifier_pipeline(config)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"entropy_modifier_enabled": "yes"}, TypeError, "entropy_modifier_enabled must be true or false"),
        ({"loss_modifiers_enabled": 1}, TypeError, "loss_modifiers_enabled must be true or false"),
        ({"target_smoothing_factor": "0.1"}, TypeError, "TargetSmoothingModifier.factor must be a number"),
        ({"mask_ratio_weight_power": 0}, ValueError, "MaskRatioModifier.power must be above 0"),
        ({"entropy_modifier_verbose": True}, ValueError, "entropy_modifier_verbose prints nothing"),
    ],
)
def test_a_bad_value_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """The message says which."""
    with pytest.raises(error, match=message):
        create_loss_modifier_pipeline({**ALL, **change})


def test_a_switch_that_never_had_an_effect_may_stay_off() -> None:
    """Configurations of the original have it."""
    assert len(create_loss_modifier_pipeline({**ALL, "entropy_modifier_verbose": False})._modifiers) == 5


@pytest.mark.parametrize("config", [None, "config.yaml", ["entropy"]])
def test_what_is_no_configuration_is_refused(config: Any) -> None:
    """A path is not read."""
    with pytest.raises(TypeError, match="must be a mapping or an object"):
        create_loss_modifier_pipeline(config)
