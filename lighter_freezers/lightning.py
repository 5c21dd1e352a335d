"""Classes with a Lightning base class, for the Trainer of `lightning.pytorch`.

`from lighter_freezers.lightning import GPTModule, TextDataModule` does not import `pytorch_lightning`.
The callbacks work in both Trainers; this module exports them too, so that one import is enough.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule, LightningModule, loggers

import lighter_freezers
from lighter_freezers.experiments.training.causal_lm_training import CausalLMTraining
from lighter_freezers.experiments.training.generation_data import GenerationData
from lighter_freezers.experiments.training.gpt_training import GPTTraining
from lighter_freezers.experiments.training.labelled_data import SequenceScoreData, TokenLabelData
from lighter_freezers.experiments.training.text_data import TextData
from lighter_freezers.reports.loggers import with_late_epoch

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
    from lighter_freezers.policies.fine_tune import fine_tune

__all__ = [
    "CausalLMModule",
    "FreezeStateLogger",
    "Freezer",
    "GPTModule",
    "GenerationDataModule",
    "GradientNormMonitor",
    "GradualUnfreezing",
    "LayerOperations",
    "LoraPhases",
    "LoraRankScheduler",
    "PhaseRecorder",
    "PlotsAtEnd",
    "ResultsSummary",
    "SequenceScoreDataModule",
    "TensorBoardLogger",
    "TextDataModule",
    "TokenLabelDataModule",
    "fine_tune",
]


class CausalLMModule(CausalLMTraining, LightningModule):
    """`lighter_freezers.CausalLMModule`, with the same arguments, for the Trainer of `lightning.pytorch`."""


class GPTModule(GPTTraining, LightningModule):
    """`lighter_freezers.GPTModule`, with the same arguments, for the Trainer of `lightning.pytorch`."""


class TextDataModule(TextData, LightningDataModule):
    """`lighter_freezers.TextDataModule`, with the same arguments, for the Trainer of `lightning.pytorch`."""


class GenerationDataModule(GenerationData, LightningDataModule):
    """`lighter_freezers.GenerationDataModule`, with the same arguments, for `lightning.pytorch`."""


class TokenLabelDataModule(TokenLabelData, LightningDataModule):
    """`lighter_freezers.TokenLabelDataModule`, with the same arguments, for `lightning.pytorch`."""


class SequenceScoreDataModule(SequenceScoreData, LightningDataModule):
    """`lighter_freezers.SequenceScoreDataModule`, with the same arguments, for `lightning.pytorch`."""


class TensorBoardLogger(loggers.TensorBoardLogger):
    """`lighter_freezers.TensorBoardLogger`, with the same arguments, for `lightning.pytorch`."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers."""
        super().log_metrics(with_late_epoch(metrics), step)


def __getattr__(name: str) -> object:
    """Import a callback, and with it both namespaces, when it is first used."""
    if name not in __all__:
        raise AttributeError(
            f"module 'lighter_freezers.lightning' has no attribute {name!r}. "
            f"Public names: {', '.join(__all__)}"
        )
    value: object = getattr(lighter_freezers, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
