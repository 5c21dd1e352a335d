"""SAMSum: a chat -> a summary of it. Rows have `id`, `dialogue` and `summary`."""

from lighter_freezers.experiments.data.fields import clean_text
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, prompted
from lighter_freezers.experiments.data.rows import Row

__all__ = ["SAMSUM"]

INSTRUCTION = "Summarise this conversation in a few words."


def _read(row: Row) -> PromptedRow:
    dialogue, summary = clean_text(row, "dialogue"), clean_text(row, "summary")
    return prompted(row, INSTRUCTION, {"Dialogue": dialogue}, "Summary", summary, cut="Dialogue")


SAMSUM = PromptedTask(
    name="samsum",
    metrics=("rouge", "bleu", "meteor"),
    max_new_tokens=128,
    read=_read,
    hub=("knkarthick/samsum",),
)
