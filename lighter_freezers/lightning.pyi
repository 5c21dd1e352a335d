# The public names for type checkers and editors; a test compares them with those of `lighter_freezers`.
from lightning.pytorch import LightningDataModule, LightningModule, loggers

from lighter_freezers import (
    GPT as GPT,
    AdaptiveScheduler as AdaptiveScheduler,
    AutoFreeze as AutoFreeze,
    AutoRgn as AutoRgn,
    BlockCycling as BlockCycling,
    EntropyModifier as EntropyModifier,
    EvaluationResult as EvaluationResult,
    FreezeOut as FreezeOut,
    Freezer as Freezer,
    FreezeStateLogger as FreezeStateLogger,
    GPTConfig as GPTConfig,
    GradientNormMonitor as GradientNormMonitor,
    GradualUnfreezer as GradualUnfreezer,
    GradualUnfreezing as GradualUnfreezing,
    LayerOperations as LayerOperations,
    LayerPolicy as LayerPolicy,
    Lisa as Lisa,
    LoraPhases as LoraPhases,
    LoraRankScheduler as LoraRankScheduler,
    LossModifierPipeline as LossModifierPipeline,
    MaskRatioModifier as MaskRatioModifier,
    Misa as Misa,
    ModelMode as ModelMode,
    PhaseRecorder as PhaseRecorder,
    PlotsAtEnd as PlotsAtEnd,
    PrefixCache as PrefixCache,
    ResultsSummary as ResultsSummary,
    SequenceCorrelationModifier as SequenceCorrelationModifier,
    SequenceVarianceModifier as SequenceVarianceModifier,
    Spectrum as Spectrum,
    TargetSmoothingModifier as TargetSmoothingModifier,
    TaskScores as TaskScores,
    TransferLearningScheduler as TransferLearningScheduler,
    WarmupOnlyScheduler as WarmupOnlyScheduler,
    Window as Window,
    anatomy_of as anatomy_of,
    apply_lora as apply_lora,
    compile_blocks as compile_blocks,
    config_from_checkpoint as config_from_checkpoint,
    create_layerwise_lora_config as create_layerwise_lora_config,
    create_loss_modifier_pipeline as create_loss_modifier_pipeline,
    create_phased_lora_config as create_phased_lora_config,
    evaluate as evaluate,
    evaluate_e2e as evaluate_e2e,
    evaluate_multi_nli as evaluate_multi_nli,
    evaluate_samsum as evaluate_samsum,
    evaluate_wikisql as evaluate_wikisql,
    fine_tune as fine_tune,
    freeze_by_name as freeze_by_name,
    freeze_embeddings as freeze_embeddings,
    freeze_except_last_n as freeze_except_last_n,
    freeze_first_n_layers as freeze_first_n_layers,
    freeze_last_n_layers as freeze_last_n_layers,
    freeze_lm_head as freeze_lm_head,
    freeze_model as freeze_model,
    get_frozen_params as get_frozen_params,
    get_frozen_percentage as get_frozen_percentage,
    get_layer_status as get_layer_status,
    get_memory_savings_estimate as get_memory_savings_estimate,
    get_num_layers as get_num_layers,
    get_total_params as get_total_params,
    get_trainable_params as get_trainable_params,
    load_pretrained as load_pretrained,
    measure_gradient_norms as measure_gradient_norms,
    plan as plan,
    print_layer_status as print_layer_status,
    resize_lora_layer as resize_lora_layer,
    save_adapter as save_adapter,
    set_layer_lora_rank as set_layer_lora_rank,
    setup_lp_lora_style as setup_lp_lora_style,
    smollm2_folder as smollm2_folder,
    trunk_and_head_groups as trunk_and_head_groups,
    unfreeze_by_name as unfreeze_by_name,
    unfreeze_embeddings as unfreeze_embeddings,
    unfreeze_first_n_layers as unfreeze_first_n_layers,
    unfreeze_last_n_layers as unfreeze_last_n_layers,
    unfreeze_lm_head as unfreeze_lm_head,
    unfreeze_model as unfreeze_model,
)
from lighter_freezers.experiments.training.causal_lm_training import CausalLMTraining
from lighter_freezers.experiments.training.generation_data import GenerationData
from lighter_freezers.experiments.training.gpt_training import GPTTraining
from lighter_freezers.experiments.training.labelled_data import SequenceScoreData, TokenLabelData
from lighter_freezers.experiments.training.text_data import TextData

__all__: list[str]

class CausalLMModule(CausalLMTraining, LightningModule): ...
class GPTModule(GPTTraining, LightningModule): ...
class GenerationDataModule(GenerationData, LightningDataModule): ...
class SequenceScoreDataModule(SequenceScoreData, LightningDataModule): ...
class TextDataModule(TextData, LightningDataModule): ...
class TokenLabelDataModule(TokenLabelData, LightningDataModule): ...
class TensorBoardLogger(loggers.TensorBoardLogger): ...
