"""Freeze, thaw and re-rank layers of any model on a schedule while PyTorch Lightning trains it.

Names are resolved on first use (PEP 562): `import lighter_freezers` itself loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lighter_freezers.callbacks.freeze_state_logger import FreezeStateLogger
    from lighter_freezers.callbacks.freezer import Freezer
    from lighter_freezers.gpt.model import GPT, GPTConfig
    from lighter_freezers.training.gpt_module import GPTModule
    from lighter_freezers.training.text_datamodule import TextDataModule

_HOMES = {
    "FreezeStateLogger": "lighter_freezers.callbacks.freeze_state_logger",
    "Freezer": "lighter_freezers.callbacks.freezer",
    "GPT": "lighter_freezers.gpt.model",
    "GPTConfig": "lighter_freezers.gpt.model",
    "GPTModule": "lighter_freezers.training.gpt_module",
    "TextDataModule": "lighter_freezers.training.text_datamodule",
}

__all__ = ["GPT", "FreezeStateLogger", "Freezer", "GPTConfig", "GPTModule", "TextDataModule"]
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
