"""E2E NLG: attributes of a restaurant -> a description of it, with several references for each.

Rows have `mr`, the attributes, and `ref`, a description; on the hub these are `meaning_representation` and
`human_reference`. Rows with the same `mr` form one question.
"""

from lighter_freezers.experiments.data.fields import clean_text
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, prompted
from lighter_freezers.experiments.data.rows import Row

__all__ = ["E2E_NLG"]

INSTRUCTION = "Describe the restaurant that has these attributes, in fluent English."
RAW_FILES = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master/"


def _read(row: Row) -> PromptedRow:
    attributes = clean_text(row, "mr", "meaning_representation")
    description = clean_text(row, "ref", "human_reference")
    parts = {"Input": attributes}
    return prompted(row, INSTRUCTION, parts, "Output", description, cut="Input", group=attributes)


E2E_NLG = PromptedTask(
    name="e2e_nlg",
    metrics=("bleu", "rouge", "meteor"),
    max_new_tokens=128,
    patterns={
        "train": ("trainset.*", "train*"),
        "val": ("devset.*", "dev*", "val*"),
        "test": ("testset_w_refs.*", "test*"),
    },
    read=_read,
    hub=tuple(f"{RAW_FILES}{name}.csv" for name in ("trainset", "devset", "testset_w_refs")),
)
