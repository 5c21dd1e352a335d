"""Freeze, thaw and re-rank layers of any model on a schedule while PyTorch Lightning trains it.

Names are resolved on first use (PEP 562): `import lighter_freezers` itself loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lighter_freezers.callbacks.freeze_state_logger import FreezeStateLogger
    from lighter_freezers.callbacks.freezer import Freezer
    from lighter_freezers.callbacks.gradient_norm_monitor import GradientNormMonitor
    from lighter_freezers.callbacks.gradual_unfreezing import GradualUnfreezing
    from lighter_freezers.callbacks.layer_operations import LayerOperations
    from lighter_freezers.callbacks.lora_phases import LoraPhases
    from lighter_freezers.callbacks.lora_rank_scheduler import LoraRankScheduler
    from lighter_freezers.callbacks.phase_recorder import PhaseRecorder
    from lighter_freezers.callbacks.plots_at_end import PlotsAtEnd
    from lighter_freezers.callbacks.results_summary import ResultsSummary
    from lighter_freezers.experiments.evaluate import (
        EvaluationResult,
        evaluate_e2e,
        evaluate_multi_nli,
        evaluate_samsum,
        evaluate_wikisql,
    )
    from lighter_freezers.experiments.training.causal_lm_module import CausalLMModule
    from lighter_freezers.experiments.training.generation_datamodule import GenerationDataModule
    from lighter_freezers.experiments.training.gpt_module import GPTModule
    from lighter_freezers.experiments.training.sequence_score_datamodule import SequenceScoreDataModule
    from lighter_freezers.experiments.training.smollm2 import smollm2_folder
    from lighter_freezers.experiments.training.text_datamodule import TextDataModule
    from lighter_freezers.experiments.training.token_label_datamodule import TokenLabelDataModule
    from lighter_freezers.gpt.config import GPTConfig, ModelMode
    from lighter_freezers.gpt.losses.factory import create_loss_modifier_pipeline
    from lighter_freezers.gpt.losses.pipeline import LossModifierPipeline
    from lighter_freezers.gpt.losses.score_modifiers import (
        SequenceCorrelationModifier,
        SequenceVarianceModifier,
    )
    from lighter_freezers.gpt.losses.token_modifiers import (
        EntropyModifier,
        MaskRatioModifier,
        TargetSmoothingModifier,
    )
    from lighter_freezers.gpt.lr_schedules.adaptive import AdaptiveScheduler
    from lighter_freezers.gpt.lr_schedules.groups import trunk_and_head_groups
    from lighter_freezers.gpt.lr_schedules.transfer import TransferLearningScheduler
    from lighter_freezers.gpt.lr_schedules.warmup_only import WarmupOnlyScheduler
    from lighter_freezers.gpt.model import GPT
    from lighter_freezers.gpt.pretrained import config_from_checkpoint, load_pretrained
    from lighter_freezers.layers.compile_blocks import compile_blocks
    from lighter_freezers.layers.counts import (
        get_frozen_params,
        get_frozen_percentage,
        get_num_layers,
        get_total_params,
        get_trainable_params,
    )
    from lighter_freezers.layers.first_and_last import (
        freeze_except_last_n,
        freeze_first_n_layers,
        freeze_last_n_layers,
        unfreeze_first_n_layers,
        unfreeze_last_n_layers,
    )
    from lighter_freezers.layers.gradual_unfreezer import GradualUnfreezer
    from lighter_freezers.layers.layer_status import get_layer_status, print_layer_status
    from lighter_freezers.layers.lp_lora import setup_lp_lora_style
    from lighter_freezers.layers.parts import (
        freeze_by_name,
        freeze_embeddings,
        freeze_lm_head,
        freeze_model,
        unfreeze_by_name,
        unfreeze_embeddings,
        unfreeze_lm_head,
        unfreeze_model,
    )
    from lighter_freezers.lora.apply import apply_lora
    from lighter_freezers.lora.export import save_adapter
    from lighter_freezers.lora.phase_presets import create_layerwise_lora_config, create_phased_lora_config
    from lighter_freezers.lora.ranks import resize_lora_layer
    from lighter_freezers.lora.set_rank import set_layer_lora_rank
    from lighter_freezers.planning.costs.savings import get_memory_savings_estimate
    from lighter_freezers.planning.plan import plan
    from lighter_freezers.reports.gradients.norms import measure_gradient_norms
    from lighter_freezers.selection.anatomy.anatomy import anatomy_of

_HOMES = {
    "AdaptiveScheduler": "lighter_freezers.gpt.lr_schedules.adaptive",
    "CausalLMModule": "lighter_freezers.experiments.training.causal_lm_module",
    "EntropyModifier": "lighter_freezers.gpt.losses.token_modifiers",
    "EvaluationResult": "lighter_freezers.experiments.evaluate",
    "FreezeStateLogger": "lighter_freezers.callbacks.freeze_state_logger",
    "Freezer": "lighter_freezers.callbacks.freezer",
    "GPT": "lighter_freezers.gpt.model",
    "GPTConfig": "lighter_freezers.gpt.config",
    "GPTModule": "lighter_freezers.experiments.training.gpt_module",
    "GenerationDataModule": "lighter_freezers.experiments.training.generation_datamodule",
    "GradientNormMonitor": "lighter_freezers.callbacks.gradient_norm_monitor",
    "GradualUnfreezer": "lighter_freezers.layers.gradual_unfreezer",
    "GradualUnfreezing": "lighter_freezers.callbacks.gradual_unfreezing",
    "LayerOperations": "lighter_freezers.callbacks.layer_operations",
    "LoraPhases": "lighter_freezers.callbacks.lora_phases",
    "LoraRankScheduler": "lighter_freezers.callbacks.lora_rank_scheduler",
    "LossModifierPipeline": "lighter_freezers.gpt.losses.pipeline",
    "MaskRatioModifier": "lighter_freezers.gpt.losses.token_modifiers",
    "ModelMode": "lighter_freezers.gpt.config",
    "PlotsAtEnd": "lighter_freezers.callbacks.plots_at_end",
    "ResultsSummary": "lighter_freezers.callbacks.results_summary",
    "PhaseRecorder": "lighter_freezers.callbacks.phase_recorder",
    "SequenceCorrelationModifier": "lighter_freezers.gpt.losses.score_modifiers",
    "SequenceScoreDataModule": "lighter_freezers.experiments.training.sequence_score_datamodule",
    "SequenceVarianceModifier": "lighter_freezers.gpt.losses.score_modifiers",
    "TargetSmoothingModifier": "lighter_freezers.gpt.losses.token_modifiers",
    "TextDataModule": "lighter_freezers.experiments.training.text_datamodule",
    "TokenLabelDataModule": "lighter_freezers.experiments.training.token_label_datamodule",
    "TransferLearningScheduler": "lighter_freezers.gpt.lr_schedules.transfer",
    "WarmupOnlyScheduler": "lighter_freezers.gpt.lr_schedules.warmup_only",
    "anatomy_of": "lighter_freezers.selection.anatomy.anatomy",
    "apply_lora": "lighter_freezers.lora.apply",
    "compile_blocks": "lighter_freezers.layers.compile_blocks",
    "config_from_checkpoint": "lighter_freezers.gpt.pretrained",
    "create_layerwise_lora_config": "lighter_freezers.lora.phase_presets",
    "create_loss_modifier_pipeline": "lighter_freezers.gpt.losses.factory",
    "create_phased_lora_config": "lighter_freezers.lora.phase_presets",
    "freeze_by_name": "lighter_freezers.layers.parts",
    "freeze_embeddings": "lighter_freezers.layers.parts",
    "freeze_except_last_n": "lighter_freezers.layers.first_and_last",
    "freeze_first_n_layers": "lighter_freezers.layers.first_and_last",
    "freeze_last_n_layers": "lighter_freezers.layers.first_and_last",
    "freeze_lm_head": "lighter_freezers.layers.parts",
    "freeze_model": "lighter_freezers.layers.parts",
    "get_frozen_params": "lighter_freezers.layers.counts",
    "get_frozen_percentage": "lighter_freezers.layers.counts",
    "get_layer_status": "lighter_freezers.layers.layer_status",
    "get_memory_savings_estimate": "lighter_freezers.planning.costs.savings",
    "get_num_layers": "lighter_freezers.layers.counts",
    "get_total_params": "lighter_freezers.layers.counts",
    "get_trainable_params": "lighter_freezers.layers.counts",
    "evaluate_e2e": "lighter_freezers.experiments.evaluate",
    "evaluate_multi_nli": "lighter_freezers.experiments.evaluate",
    "evaluate_samsum": "lighter_freezers.experiments.evaluate",
    "evaluate_wikisql": "lighter_freezers.experiments.evaluate",
    "load_pretrained": "lighter_freezers.gpt.pretrained",
    "measure_gradient_norms": "lighter_freezers.reports.gradients.norms",
    "print_layer_status": "lighter_freezers.layers.layer_status",
    "plan": "lighter_freezers.planning.plan",
    "resize_lora_layer": "lighter_freezers.lora.ranks",
    "save_adapter": "lighter_freezers.lora.export",
    "set_layer_lora_rank": "lighter_freezers.lora.set_rank",
    "setup_lp_lora_style": "lighter_freezers.layers.lp_lora",
    "smollm2_folder": "lighter_freezers.experiments.training.smollm2",
    "trunk_and_head_groups": "lighter_freezers.gpt.lr_schedules.groups",
    "unfreeze_by_name": "lighter_freezers.layers.parts",
    "unfreeze_embeddings": "lighter_freezers.layers.parts",
    "unfreeze_first_n_layers": "lighter_freezers.layers.first_and_last",
    "unfreeze_last_n_layers": "lighter_freezers.layers.first_and_last",
    "unfreeze_lm_head": "lighter_freezers.layers.parts",
    "unfreeze_model": "lighter_freezers.layers.parts",
}

__all__ = [
    "GPT",
    "AdaptiveScheduler",
    "CausalLMModule",
    "EntropyModifier",
    "EvaluationResult",
    "FreezeStateLogger",
    "Freezer",
    "GPTConfig",
    "GPTModule",
    "GenerationDataModule",
    "GradientNormMonitor",
    "GradualUnfreezer",
    "GradualUnfreezing",
    "LayerOperations",
    "LoraPhases",
    "LoraRankScheduler",
    "LossModifierPipeline",
    "MaskRatioModifier",
    "ModelMode",
    "PhaseRecorder",
    "PlotsAtEnd",
    "ResultsSummary",
    "SequenceCorrelationModifier",
    "SequenceScoreDataModule",
    "SequenceVarianceModifier",
    "TargetSmoothingModifier",
    "TextDataModule",
    "TokenLabelDataModule",
    "TransferLearningScheduler",
    "WarmupOnlyScheduler",
    "anatomy_of",
    "apply_lora",
    "compile_blocks",
    "config_from_checkpoint",
    "create_layerwise_lora_config",
    "create_loss_modifier_pipeline",
    "create_phased_lora_config",
    "freeze_by_name",
    "freeze_embeddings",
    "freeze_except_last_n",
    "freeze_first_n_layers",
    "freeze_last_n_layers",
    "freeze_lm_head",
    "freeze_model",
    "get_frozen_params",
    "get_frozen_percentage",
    "get_layer_status",
    "get_memory_savings_estimate",
    "get_num_layers",
    "get_total_params",
    "get_trainable_params",
    "evaluate_e2e",
    "evaluate_multi_nli",
    "evaluate_samsum",
    "evaluate_wikisql",
    "load_pretrained",
    "measure_gradient_norms",
    "plan",
    "print_layer_status",
    "resize_lora_layer",
    "save_adapter",
    "set_layer_lora_rank",
    "setup_lp_lora_style",
    "smollm2_folder",
    "trunk_and_head_groups",
    "unfreeze_by_name",
    "unfreeze_embeddings",
    "unfreeze_first_n_layers",
    "unfreeze_last_n_layers",
    "unfreeze_lm_head",
    "unfreeze_model",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the module of a public name when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'lighter_freezers' has no attribute {name!r}. Public names: {', '.join(__all__)}"
        )
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
