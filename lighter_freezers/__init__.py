"""Freeze, thaw and re-rank layers of any model on a schedule while PyTorch Lightning trains it.

Names are resolved on first use (PEP 562): `import lighter_freezers` itself loads no torch.
Type checkers and editors read the names in `__init__.pyi`.
"""

from importlib import import_module

_NAMES = {  # module -> its public names
    "callbacks.freeze_state_logger": "FreezeStateLogger",
    "callbacks.freezer": "Freezer",
    "callbacks.gradient_norm_monitor": "GradientNormMonitor",
    "callbacks.gradual_unfreezing": "GradualUnfreezing",
    "callbacks.layer_operations": "LayerOperations",
    "callbacks.lora_phases": "LoraPhases",
    "callbacks.lora_rank_scheduler": "LoraRankScheduler",
    "callbacks.phase_recorder": "PhaseRecorder",
    "callbacks.plots_at_end": "PlotsAtEnd",
    "callbacks.prefix_cache": "PrefixCache",
    "callbacks.results_summary": "ResultsSummary",
    "layers.compile_blocks": "compile_blocks",
    "layers.counts": (
        "get_frozen_params get_frozen_percentage get_num_layers get_total_params get_trainable_params"
    ),
    "layers.first_and_last": (
        "freeze_except_last_n freeze_first_n_layers freeze_last_n_layers unfreeze_first_n_layers "
        "unfreeze_last_n_layers"
    ),
    "layers.gradual_unfreezer": "GradualUnfreezer",
    "layers.layer_status": "get_layer_status print_layer_status",
    "layers.lp_lora": "setup_lp_lora_style",
    "layers.parts": (
        "freeze_by_name freeze_embeddings freeze_lm_head freeze_model unfreeze_by_name "
        "unfreeze_embeddings unfreeze_lm_head unfreeze_model"
    ),
    "lora.apply": "apply_lora",
    "lora.export": "save_adapter",
    "lora.phase_presets": "create_layerwise_lora_config create_phased_lora_config",
    "lora.ranks": "resize_lora_layer",
    "lora.set_rank": "set_layer_lora_rank",
    "gpt.config": "GPTConfig ModelMode",
    "gpt.losses.factory": "create_loss_modifier_pipeline",
    "gpt.losses.pipeline": "LossModifierPipeline",
    "gpt.losses.score_modifiers": "SequenceCorrelationModifier SequenceVarianceModifier",
    "gpt.losses.token_modifiers": "EntropyModifier MaskRatioModifier TargetSmoothingModifier",
    "gpt.lr_schedules.adaptive": "AdaptiveScheduler",
    "gpt.lr_schedules.groups": "trunk_and_head_groups",
    "gpt.lr_schedules.transfer": "TransferLearningScheduler",
    "gpt.lr_schedules.warmup_only": "WarmupOnlyScheduler",
    "gpt.model": "GPT",
    "gpt.pretrained": "config_from_checkpoint load_pretrained",
    "experiments.evaluate": (
        "EvaluationResult TaskScores evaluate evaluate_e2e evaluate_multi_nli evaluate_samsum "
        "evaluate_wikisql"
    ),
    "experiments.training.causal_lm_module": "CausalLMModule",
    "experiments.training.generation_datamodule": "GenerationDataModule",
    "experiments.training.gpt_module": "GPTModule",
    "experiments.training.sequence_score_datamodule": "SequenceScoreDataModule",
    "experiments.training.smollm2": "smollm2_folder",
    "experiments.training.tensorboard_logger": "TensorBoardLogger",
    "experiments.training.text_datamodule": "TextDataModule",
    "experiments.training.token_label_datamodule": "TokenLabelDataModule",
    "planning.costs.savings": "get_memory_savings_estimate",
    "planning.plan": "plan",
    "policies.auto_freeze": "AutoFreeze",
    "policies.auto_rgn": "AutoRgn",
    "policies.block_cycling": "BlockCycling",
    "policies.fine_tune": "fine_tune",
    "policies.freeze_out": "FreezeOut",
    "policies.layer_policy": "LayerPolicy",
    "policies.lisa": "Lisa",
    "policies.misa": "Misa",
    "policies.spectrum": "Spectrum",
    "policies.window": "Window",
    "reports.gradients.norms": "measure_gradient_norms",
    "selection.anatomy.anatomy": "anatomy_of",
}
_HOMES = {name: f"lighter_freezers.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)
__version__ = "0.2.0"


def __getattr__(name: str) -> object:
    """Import the module of a public name when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'lighter_freezers' has no attribute {name!r}. Public names: {', '.join(__all__)}"
        )
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from lighter_freezers._extras import missing_package

        raise missing_package(error, f"lighter_freezers.{name}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
