"""Loss modifiers that weight, smooth and scale, and the pipeline that composes them."""

from lighter_freezers.gpt.losses.factory import create_loss_modifier_pipeline
from lighter_freezers.gpt.losses.modifier import LossModifier
from lighter_freezers.gpt.losses.pipeline import LossModifierPipeline
from lighter_freezers.gpt.losses.score_modifiers import SequenceCorrelationModifier, SequenceVarianceModifier
from lighter_freezers.gpt.losses.token_modifiers import (
    EntropyModifier,
    MaskRatioModifier,
    TargetSmoothingModifier,
)

__all__ = [
    "EntropyModifier",
    "LossModifier",
    "LossModifierPipeline",
    "MaskRatioModifier",
    "SequenceCorrelationModifier",
    "SequenceVarianceModifier",
    "TargetSmoothingModifier",
    "create_loss_modifier_pipeline",
]
