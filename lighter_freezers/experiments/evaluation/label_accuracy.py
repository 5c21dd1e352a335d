"""Accuracy of labels that a model writes out as text, with a strict reading of what it wrote."""

import re
from collections.abc import Collection, Sequence

from lighter_freezers.experiments.evaluation.text_metrics import check_pairs, share

__all__ = ["label_accuracy", "parse_label"]

_WORD = re.compile(r"\w+(?:[-']\w+)*")
_AROUND = " \t\r\n.,;:!?\"'`*()[]"


def label_accuracy(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    labels: Collection[str] | None = None,
) -> dict[str, float]:
    """Share of answers that say the right label, 0 to 1; see `parse_label` for what says a label.

    Args:
        predictions: One text per row.
        references: The right label of each row, or several that would be right.
        labels: All there are. None for those that occur in the references.

    Returns:
        `accuracy`, and `unparsed`, the share of answers that say no label or more than one. They are wrong.

    Raises:
        TypeError: Something is no list of texts.
        ValueError: Predictions and references do not belong together.
    """
    check_pairs(predictions, references)
    right = [{_tidy(label) for label in row} for row in references]
    known = {_tidy(label) for label in labels} if labels is not None else set().union(*right)
    said = [parse_label(prediction, known) for prediction in predictions]
    return {
        "accuracy": share([label in row for label, row in zip(said, right, strict=True)]),
        "unparsed": share([label is None for label in said]),
    }


def parse_label(answer: str, labels: Collection[str]) -> str | None:
    """The one label that an answer gives.

    The whole answer is a label, or its first word is one and no other label follows. Case, and punctuation
    around the answer, make no difference. A label in the middle of a sentence is no answer.

    Args:
        answer: What the model wrote.
        labels: Lower-cased.

    Returns:
        The label, or None if there is none or more than one.
    """
    whole = _tidy(answer)
    if whole in labels:
        return whole
    words = _WORD.findall(whole)
    said = [word for word in dict.fromkeys(words) if word in labels]
    return said[0] if len(said) == 1 and words[0] == said[0] else None


def _tidy(text: str) -> str:
    return " ".join(text.lower().split()).strip(_AROUND)
