"""Freeze, thaw and re-rank layers of any model on a schedule while PyTorch Lightning trains it.

Names are resolved on first use (PEP 562): `import lighter_freezers` itself loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lighter_freezers.callbacks.freeze_state_logger import FreezeStateLogger
    from lighter_freezers.callbacks.freezer import Freezer
    from lighter_freezers.callbacks.layer_operations import LayerOperations
    from lighter_freezers.callbacks.lora_phases import (
        LoraPhases,
        create_layerwise_lora_config,
        create_phased_lora_config,
    )
    from lighter_freezers.callbacks.lora_rank_scheduler import LoraRankScheduler
    from lighter_freezers.gpt.config import GPTConfig, ModelMode
    from lighter_freezers.gpt.model import GPT
    from lighter_freezers.gpt.pretrained import config_from_checkpoint, load_pretrained
    from lighter_freezers.lora.apply import apply_lora
    from lighter_freezers.lora.export import save_adapter
    from lighter_freezers.lora.ranks import resize_lora_layer
    from lighter_freezers.lora.verbs import set_layer_lora_rank
    from lighter_freezers.losses.factory import create_loss_modifier_pipeline
    from lighter_freezers.losses.pipeline import LossModifierPipeline
    from lighter_freezers.losses.score_modifiers import SequenceCorrelationModifier, SequenceVarianceModifier
    from lighter_freezers.losses.token_modifiers import (
        EntropyModifier,
        MaskRatioModifier,
        TargetSmoothingModifier,
    )
    from lighter_freezers.lr_schedules.adaptive import AdaptiveScheduler
    from lighter_freezers.lr_schedules.groups import trunk_and_head_groups
    from lighter_freezers.lr_schedules.transfer import TransferLearningScheduler
    from lighter_freezers.lr_schedules.warmup_only import WarmupOnlyScheduler
    from lighter_freezers.training.gpt_module import GPTModule
    from lighter_freezers.training.sequence_score_datamodule import SequenceScoreDataModule
    from lighter_freezers.training.text_datamodule import TextDataModule
    from lighter_freezers.training.token_label_datamodule import TokenLabelDataModule

_HOMES = {
    "AdaptiveScheduler": "lighter_freezers.lr_schedules.adaptive",
    "EntropyModifier": "lighter_freezers.losses.token_modifiers",
    "FreezeStateLogger": "lighter_freezers.callbacks.freeze_state_logger",
    "Freezer": "lighter_freezers.callbacks.freezer",
    "GPT": "lighter_freezers.gpt.model",
    "GPTConfig": "lighter_freezers.gpt.config",
    "GPTModule": "lighter_freezers.training.gpt_module",
    "LayerOperations": "lighter_freezers.callbacks.layer_operations",
    "LoraPhases": "lighter_freezers.callbacks.lora_phases",
    "LoraRankScheduler": "lighter_freezers.callbacks.lora_rank_scheduler",
    "LossModifierPipeline": "lighter_freezers.losses.pipeline",
    "MaskRatioModifier": "lighter_freezers.losses.token_modifiers",
    "ModelMode": "lighter_freezers.gpt.config",
    "SequenceCorrelationModifier": "lighter_freezers.losses.score_modifiers",
    "SequenceScoreDataModule": "lighter_freezers.training.sequence_score_datamodule",
    "SequenceVarianceModifier": "lighter_freezers.losses.score_modifiers",
    "TargetSmoothingModifier": "lighter_freezers.losses.token_modifiers",
    "TextDataModule": "lighter_freezers.training.text_datamodule",
    "TokenLabelDataModule": "lighter_freezers.training.token_label_datamodule",
    "TransferLearningScheduler": "lighter_freezers.lr_schedules.transfer",
    "WarmupOnlyScheduler": "lighter_freezers.lr_schedules.warmup_only",
    "apply_lora": "lighter_freezers.lora.apply",
    "config_from_checkpoint": "lighter_freezers.gpt.pretrained",
    "create_layerwise_lora_config": "lighter_freezers.callbacks.lora_phases",
    "create_loss_modifier_pipeline": "lighter_freezers.losses.factory",
    "create_phased_lora_config": "lighter_freezers.callbacks.lora_phases",
    "load_pretrained": "lighter_freezers.gpt.pretrained",
    "resize_lora_layer": "lighter_freezers.lora.ranks",
    "save_adapter": "lighter_freezers.lora.export",
    "set_layer_lora_rank": "lighter_freezers.lora.verbs",
    "trunk_and_head_groups": "lighter_freezers.lr_schedules.groups",
}

__all__ = [
    "AdaptiveScheduler",
    "EntropyModifier",
    "FreezeStateLogger",
    "Freezer",
    "GPT",
    "GPTConfig",
    "GPTModule",
    "LayerOperations",
    "LoraPhases",
    "LoraRankScheduler",
    "LossModifierPipeline",
    "MaskRatioModifier",
    "ModelMode",
    "SequenceCorrelationModifier",
    "SequenceScoreDataModule",
    "SequenceVarianceModifier",
    "TargetSmoothingModifier",
    "TextDataModule",
    "TokenLabelDataModule",
    "TransferLearningScheduler",
    "WarmupOnlyScheduler",
    "apply_lora",
    "config_from_checkpoint",
    "create_layerwise_lora_config",
    "create_loss_modifier_pipeline",
    "create_phased_lora_config",
    "load_pretrained",
    "resize_lora_layer",
    "save_adapter",
    "set_layer_lora_rank",
    "trunk_and_head_groups",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the module that a public name lives in, the first time somebody asks for the name."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'lighter_freezers' has no attribute {name!r}. Public names: {', '.join(__all__)}"
        )
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
