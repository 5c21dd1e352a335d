"""GPT: the model itself, plain torch. `training.gpt_module` trains it."""

from lighter_freezers.gpt.config import GPTConfig, ModelMode
from lighter_freezers.gpt.model import GPT

__all__ = ["GPT", "GPTConfig", "ModelMode"]
