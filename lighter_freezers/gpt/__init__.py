"""GPT: the model itself, plain torch. `training.gpt_module` trains it."""

from lighter_freezers.gpt.model import GPT, GPTConfig

__all__ = ["GPT", "GPTConfig"]
