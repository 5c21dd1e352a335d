"""Builds a pipeline from flat configuration keys, as in the multi-mode GPT's training scripts."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from lighter_freezers.arguments import checked, flag
from lighter_freezers.gpt.losses.modifier import LossModifier
from lighter_freezers.gpt.losses.pipeline import LossModifierPipeline
from lighter_freezers.gpt.losses.score_modifiers import SequenceCorrelationModifier, SequenceVarianceModifier
from lighter_freezers.gpt.losses.token_modifiers import (
    EntropyModifier,
    MaskRatioModifier,
    TargetSmoothingModifier,
)
from lighter_freezers.selection.names import closest_names

__all__ = ["create_loss_modifier_pipeline"]

_MASTER = "loss_modifiers_enabled"
_SIMILAR = 0.75  # similarity from which an unknown key counts as misspelled


class _Family(NamedTuple):
    """The keys of one modifier: `prefix_argument`."""

    prefix: str
    build: Callable[..., LossModifier]
    arguments: tuple[str, ...]


_FAMILIES = (
    _Family("entropy_modifier", EntropyModifier, ("weight", "threshold", "eps")),
    _Family(
        "target_smoothing",
        TargetSmoothingModifier,
        ("factor", "special_tokens", "exclude_padding", "padding_token"),
    ),
    _Family("mask_ratio_weight", MaskRatioModifier, ("power", "min_weight", "max_weight", "eps")),
    _Family("sequence_variance", SequenceVarianceModifier, ("scale", "alpha", "eps")),
    _Family("sequence_correlation", SequenceCorrelationModifier, ("alpha", "eps")),
)
_OTHER_SPELLINGS = {
    "mask_ratio_weight_min": "mask_ratio_weight_min_weight",
    "mask_ratio_weight_max": "mask_ratio_weight_max_weight",
}
_RETIRED = "entropy_modifier_verbose"  # never had an effect
_KNOWN = (
    _MASTER,
    *(f"{family.prefix}_{key}" for family in _FAMILIES for key in ("enabled", *family.arguments)),
    *_OTHER_SPELLINGS,
    _RETIRED,
)


@checked
def create_loss_modifier_pipeline(config: Mapping[str, object] | object) -> LossModifierPipeline:
    """Build a pipeline from flat keys.

    `loss_modifiers_enabled` turns everything on or off. `NAME_enabled` turns on one modifier, and the other
    keys of its name are arguments of its class:

    | name | class | keys besides `_enabled` |
    |---|---|---|
    | `entropy_modifier` | `EntropyModifier` | `_weight`, `_threshold`, `_eps` |
    | `target_smoothing` | `TargetSmoothingModifier` | `_factor`, `_special_tokens`, `_exclude_padding`, `_padding_token` |
    | `mask_ratio_weight` | `MaskRatioModifier` | `_power`, `_min_weight` or `_min`, `_max_weight` or `_max`, `_eps` |
    | `sequence_variance` | `SequenceVarianceModifier` | `_scale`, `_alpha`, `_eps` |
    | `sequence_correlation` | `SequenceCorrelationModifier` | `_alpha`, `_eps` |

    The configuration of a whole training run may be given: keys that do not concern loss modifiers
    (`batch_size`) are ignored. A key that resembles one of the above is an error.

    Args:
        config: A mapping, or an object with these attributes, such as a configuration module.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A key looks misspelled, a value is out of range, a limit is given in both spellings with
            different values, or a modifier is turned on while `loss_modifiers_enabled` is missing.

    Example:
        ```python
        from lighter_freezers.gpt.losses import create_loss_modifier_pipeline

        pipeline = create_loss_modifier_pipeline(
            {"loss_modifiers_enabled": True, "target_smoothing_enabled": True, "target_smoothing_factor": 0.1}
        )
        assert pipeline.get_enabled_modifier_names() == ["TargetSmoothingModifier"]
        ```
    """  # noqa: E501 (a table row cannot be broken)
    values = _values(config)
    if not isinstance(config, Mapping) and _MASTER not in values:
        raise ValueError(
            f"config must be a mapping, or an object with the attribute {_MASTER}. Got {config!r}."
        )
    enabled = [f for f in _FAMILIES if flag(f"{f.prefix}_enabled", values.get(f"{f.prefix}_enabled", False))]
    if enabled and _MASTER not in values:
        raise ValueError(
            f"{enabled[0].prefix}_enabled is true, but {_MASTER} is missing: without it none applies. "
            f"Add {_MASTER}: true."
        )
    if not flag(_MASTER, values.get(_MASTER, False)):
        return LossModifierPipeline()
    return LossModifierPipeline([_build(family, values) for family in enabled])


def _build(family: _Family, values: Mapping[str, object]) -> LossModifier:
    keys = {argument: f"{family.prefix}_{argument}" for argument in family.arguments}
    return family.build(**{argument: values[key] for argument, key in keys.items() if key in values})


def _values(config: Mapping[str, object] | object) -> dict[str, object]:
    """The known keys with their values, in one spelling."""
    if config is None or isinstance(config, (str, int, float, list, tuple)):
        raise TypeError(f"config must be a mapping or an object with attributes. Got {config!r}.")
    names = list(config) if isinstance(config, Mapping) else [name for name in dir(config) if name[0] != "_"]
    _refuse_misspelled(names)
    values: dict[str, object] = {}
    for name in (name for name in names if name in _KNOWN):
        key = _OTHER_SPELLINGS.get(name, name)
        value = config[name] if isinstance(config, Mapping) else getattr(config, name)
        if key in values and values[key] != value:
            raise ValueError(f"{key} is given in two spellings, as {values[key]} and {value}. Keep one.")
        values[key] = value
    if flag(_RETIRED, values.pop(_RETIRED, False)):
        raise ValueError(f"{_RETIRED} prints nothing. Remove it, and log get_all_metrics() instead.")
    return values


def _refuse_misspelled(names: list[str]) -> None:
    for name in names:
        if name in _KNOWN:
            continue
        closest = closest_names(str(name), _KNOWN, 3, cutoff=_SIMILAR)
        family = next((family.prefix for family in _FAMILIES if family.prefix in str(name)), None)
        if family is not None and not closest:
            closest = [key for key in _KNOWN if family in key]
        if closest:
            raise ValueError(f"There is no key {name!r} for loss modifiers. Closest: {', '.join(closest)}.")
