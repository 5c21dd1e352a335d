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
    from lighter_freezers.gpt.model import GPT, GPTConfig
    from lighter_freezers.lora.apply import apply_lora
    from lighter_freezers.lora.export import save_adapter
    from lighter_freezers.lora.ranks import resize_lora_layer
    from lighter_freezers.lora.verbs import set_layer_lora_rank
    from lighter_freezers.training.gpt_module import GPTModule
    from lighter_freezers.training.text_datamodule import TextDataModule

_HOMES = {
    "FreezeStateLogger": "lighter_freezers.callbacks.freeze_state_logger",
    "Freezer": "lighter_freezers.callbacks.freezer",
    "GPT": "lighter_freezers.gpt.model",
    "GPTConfig": "lighter_freezers.gpt.model",
    "GPTModule": "lighter_freezers.training.gpt_module",
    "LoraRankScheduler": "lighter_freezers.callbacks.lora_rank_scheduler",
    "LayerOperations": "lighter_freezers.callbacks.layer_operations",
    "LoraPhases": "lighter_freezers.callbacks.lora_phases",
    "TextDataModule": "lighter_freezers.training.text_datamodule",
    "apply_lora": "lighter_freezers.lora.apply",
    "create_layerwise_lora_config": "lighter_freezers.callbacks.lora_phases",
    "create_phased_lora_config": "lighter_freezers.callbacks.lora_phases",
    "resize_lora_layer": "lighter_freezers.lora.ranks",
    "save_adapter": "lighter_freezers.lora.export",
    "set_layer_lora_rank": "lighter_freezers.lora.verbs",
}

__all__ = [
    "GPT",
    "FreezeStateLogger",
    "Freezer",
    "GPTConfig",
    "GPTModule",
    "LoraRankScheduler",
    "LayerOperations",
    "LoraPhases",
    "TextDataModule",
    "apply_lora",
    "create_layerwise_lora_config",
    "create_phased_lora_config",
    "resize_lora_layer",
    "save_adapter",
    "set_layer_lora_rank",
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
