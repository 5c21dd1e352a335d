"""The multi-mode GPT, in plain torch. `experiments/training/gpt_module.py` trains it."""

from lighter_freezers.gpt.config import GPTConfig, ModelMode
from lighter_freezers.gpt.model import GPT

__all__ = ["GPT", "GPTConfig", "ModelMode"]
