"""SAMSum: a chat -> a summary of it. Rows have `id`, `dialogue` and `summary`."""

from lighter_freezers.experiments.data.fields import clean_text
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, prompt_with
from lighter_freezers.experiments.data.rows import Row

__all__ = ["SAMSUM"]

INSTRUCTION = "Summarise this conversation in a few words."


def _read(row: Row) -> PromptedRow:
    dialogue, summary = clean_text(row, "dialogue"), clean_text(row, "summary")
    prompt, context = prompt_with(INSTRUCTION, {"Dialogue": dialogue}, answer="Summary", context="Dialogue")
    return PromptedRow(
        prompt, summary, (summary,), group=row.where, origin=dialogue, where=row.where, context=context
    )


SAMSUM = PromptedTask(
    name="samsum",
    metrics=("rouge", "bleu", "meteor"),
    max_new_tokens=128,
    patterns={"train": ("train*",), "val": ("val*", "dev*"), "test": ("test*",)},
    reader_of=lambda file: _read,
    hub=("knkarthick/samsum",),
)
