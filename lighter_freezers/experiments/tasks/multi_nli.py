"""MultiNLI: a premise and a hypothesis -> entailment, neutral or contradiction.

Rows have `premise`, `hypothesis` and `label`, a number or a name; in the original files these are
`sentence1`, `sentence2` and `gold_label`. The labels -1 and `-` mark pairs on which the annotators did not
agree: they have no answer.
"""

from lighter_freezers.experiments.data.fields import clean_text, field_among
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, prompted
from lighter_freezers.experiments.data.rows import Row, shown

__all__ = ["LABELS", "MULTI_NLI"]

INSTRUCTION = "Say how the hypothesis relates to the premise: entailment, neutral or contradiction."
LABELS = ("entailment", "neutral", "contradiction")  # in the order of their numbers
NOT_AGREED = (-1, "-")


def _read(row: Row) -> PromptedRow | None:
    premise = clean_text(row, "premise", "sentence1")
    hypothesis = clean_text(row, "hypothesis", "sentence2")
    label = _label(row)
    if label is None:
        return None
    parts = {"Premise": premise, "Hypothesis": hypothesis}
    return prompted(row, INSTRUCTION, parts, "Classification", label, cut="Premise")


def _label(row: Row) -> str | None:
    """The name of the label; None where the annotators did not agree."""
    field = field_among(row, "label", "gold_label")
    found = row.values[field]
    names: dict[object, str | None] = dict.fromkeys(NOT_AGREED)
    names |= {name: name for name in LABELS} | dict(enumerate(LABELS))
    if row.is_text:  # in a CSV file numbers are text
        names |= {str(number): names[number] for number in (-1, 0, 1, 2)}
        found = str(found).strip()
    if isinstance(found, bool) or not isinstance(found, (str, int)) or found not in names:
        known = ", ".join(f"{number} or '{name}'" for number, name in enumerate(LABELS))
        raise row.error(field, f"{known}, or -1 for a pair without a label", shown(found))
    return names[found]


MULTI_NLI = PromptedTask(
    name="multi_nli",
    metrics=("accuracy",),
    max_new_tokens=8,
    patterns={
        "train": ("train*", "*_train.*"),
        "val": ("validation.*", "val.*", "dev.*"),
        "test": ("*validation_matched*", "*dev_matched*", "test*"),
    },
    read=_read,
    left_out="the annotators did not agree (-1)",
    hub=("nyu-mll/multi_nli",),
    labels=LABELS,
)
