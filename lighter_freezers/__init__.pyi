# The public names for type checkers and editors; a test compares them with those of `__init__.py`.
from lighter_freezers.callbacks.freeze_state_logger import FreezeStateLogger as FreezeStateLogger
from lighter_freezers.callbacks.freezer import Freezer as Freezer
from lighter_freezers.callbacks.gradient_norm_monitor import GradientNormMonitor as GradientNormMonitor
from lighter_freezers.callbacks.gradual_unfreezing import GradualUnfreezing as GradualUnfreezing
from lighter_freezers.callbacks.layer_operations import LayerOperations as LayerOperations
from lighter_freezers.callbacks.lora_phases import LoraPhases as LoraPhases
from lighter_freezers.callbacks.lora_rank_scheduler import LoraRankScheduler as LoraRankScheduler
from lighter_freezers.callbacks.phase_recorder import PhaseRecorder as PhaseRecorder
from lighter_freezers.callbacks.plots_at_end import PlotsAtEnd as PlotsAtEnd
from lighter_freezers.callbacks.prefix_cache import PrefixCache as PrefixCache
from lighter_freezers.callbacks.results_summary import ResultsSummary as ResultsSummary
from lighter_freezers.experiments.evaluate import (
    EvaluationResult as EvaluationResult,
    TaskScores as TaskScores,
    evaluate as evaluate,
    evaluate_e2e as evaluate_e2e,
    evaluate_multi_nli as evaluate_multi_nli,
    evaluate_samsum as evaluate_samsum,
    evaluate_wikisql as evaluate_wikisql,
)
from lighter_freezers.experiments.training.causal_lm_module import CausalLMModule as CausalLMModule
from lighter_freezers.experiments.training.generation_datamodule import (
    GenerationDataModule as GenerationDataModule,
)
from lighter_freezers.experiments.training.gpt_module import GPTModule as GPTModule
from lighter_freezers.experiments.training.sequence_score_datamodule import (
    SequenceScoreDataModule as SequenceScoreDataModule,
)
from lighter_freezers.experiments.training.smollm2 import smollm2_folder as smollm2_folder
from lighter_freezers.experiments.training.tensorboard_logger import TensorBoardLogger as TensorBoardLogger
from lighter_freezers.experiments.training.text_datamodule import TextDataModule as TextDataModule
from lighter_freezers.experiments.training.token_label_datamodule import (
    TokenLabelDataModule as TokenLabelDataModule,
)
from lighter_freezers.gpt.config import (
    GPTConfig as GPTConfig,
    ModelMode as ModelMode,
)
from lighter_freezers.gpt.losses.factory import create_loss_modifier_pipeline as create_loss_modifier_pipeline
from lighter_freezers.gpt.losses.pipeline import LossModifierPipeline as LossModifierPipeline
from lighter_freezers.gpt.losses.score_modifiers import (
    SequenceCorrelationModifier as SequenceCorrelationModifier,
    SequenceVarianceModifier as SequenceVarianceModifier,
)
from lighter_freezers.gpt.losses.token_modifiers import (
    EntropyModifier as EntropyModifier,
    MaskRatioModifier as MaskRatioModifier,
    TargetSmoothingModifier as TargetSmoothingModifier,
)
from lighter_freezers.gpt.lr_schedules.adaptive import AdaptiveScheduler as AdaptiveScheduler
from lighter_freezers.gpt.lr_schedules.groups import trunk_and_head_groups as trunk_and_head_groups
from lighter_freezers.gpt.lr_schedules.transfer import TransferLearningScheduler as TransferLearningScheduler
from lighter_freezers.gpt.lr_schedules.warmup_only import WarmupOnlyScheduler as WarmupOnlyScheduler
from lighter_freezers.gpt.model import GPT as GPT
from lighter_freezers.gpt.pretrained import (
    config_from_checkpoint as config_from_checkpoint,
    load_pretrained as load_pretrained,
)
from lighter_freezers.layers.compile_blocks import compile_blocks as compile_blocks
from lighter_freezers.layers.counts import (
    get_frozen_params as get_frozen_params,
    get_frozen_percentage as get_frozen_percentage,
    get_num_layers as get_num_layers,
    get_total_params as get_total_params,
    get_trainable_params as get_trainable_params,
)
from lighter_freezers.layers.first_and_last import (
    freeze_except_last_n as freeze_except_last_n,
    freeze_first_n_layers as freeze_first_n_layers,
    freeze_last_n_layers as freeze_last_n_layers,
    unfreeze_first_n_layers as unfreeze_first_n_layers,
    unfreeze_last_n_layers as unfreeze_last_n_layers,
)
from lighter_freezers.layers.gradual_unfreezer import GradualUnfreezer as GradualUnfreezer
from lighter_freezers.layers.layer_status import (
    get_layer_status as get_layer_status,
    print_layer_status as print_layer_status,
)
from lighter_freezers.layers.lp_lora import setup_lp_lora_style as setup_lp_lora_style
from lighter_freezers.layers.parts import (
    freeze_by_name as freeze_by_name,
    freeze_embeddings as freeze_embeddings,
    freeze_lm_head as freeze_lm_head,
    freeze_model as freeze_model,
    unfreeze_by_name as unfreeze_by_name,
    unfreeze_embeddings as unfreeze_embeddings,
    unfreeze_lm_head as unfreeze_lm_head,
    unfreeze_model as unfreeze_model,
)
from lighter_freezers.lora.apply import apply_lora as apply_lora
from lighter_freezers.lora.export import save_adapter as save_adapter
from lighter_freezers.lora.phase_presets import (
    create_layerwise_lora_config as create_layerwise_lora_config,
    create_phased_lora_config as create_phased_lora_config,
)
from lighter_freezers.lora.ranks import resize_lora_layer as resize_lora_layer
from lighter_freezers.lora.set_rank import set_layer_lora_rank as set_layer_lora_rank
from lighter_freezers.planning.costs.savings import get_memory_savings_estimate as get_memory_savings_estimate
from lighter_freezers.planning.plan import plan as plan
from lighter_freezers.policies.auto_freeze import AutoFreeze as AutoFreeze
from lighter_freezers.policies.auto_rgn import AutoRgn as AutoRgn
from lighter_freezers.policies.block_cycling import BlockCycling as BlockCycling
from lighter_freezers.policies.fine_tune import fine_tune as fine_tune
from lighter_freezers.policies.freeze_out import FreezeOut as FreezeOut
from lighter_freezers.policies.layer_policy import LayerPolicy as LayerPolicy
from lighter_freezers.policies.lisa import Lisa as Lisa
from lighter_freezers.policies.misa import Misa as Misa
from lighter_freezers.policies.spectrum import Spectrum as Spectrum
from lighter_freezers.policies.window import Window as Window
from lighter_freezers.reports.gradients.norms import measure_gradient_norms as measure_gradient_norms
from lighter_freezers.selection.anatomy.anatomy import anatomy_of as anatomy_of

__all__: list[str]
__version__: str
