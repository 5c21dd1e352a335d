"""Experiments: data sets, tasks and their metrics, evaluation, and training modules.

What a task of one's own is written with is exported here.
"""

from lighter_freezers.experiments.data.fields import clean_text
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, prompt_with, prompted
from lighter_freezers.experiments.data.rows import Row

__all__ = ["PromptedRow", "PromptedTask", "Row", "clean_text", "prompt_with", "prompted"]
