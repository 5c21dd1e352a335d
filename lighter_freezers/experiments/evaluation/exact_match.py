"""Whether a prediction is a reference, but for case, quotes and white space."""

from collections.abc import Sequence

from lighter_freezers.experiments.evaluation.text_metrics import check_pairs, share

__all__ = ["exact_match", "normalised"]

_NO_QUOTES = str.maketrans("", "", "\"'`\u2018\u2019\u201c\u201d")


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Share of predictions that are equal to a reference of theirs, 0 to 1.

    Both are lower-cased, freed of quotation marks and of white space at their ends, and any white space
    within becomes one blank. Nothing else is forgiven: a prediction that goes on after the answer is wrong.

    Args:
        predictions: One text per row.
        references: The texts that would be right, one or more per row.

    Returns:
        `exact_match`.

    Raises:
        TypeError: Something is no list of texts.
        ValueError: Predictions and references do not belong together.
    """
    check_pairs(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return {"exact_match": share([normalised(text) in map(normalised, texts) for text, texts in pairs])}


def normalised(text: str) -> str:
    """Lower-cased, without quotation marks, with single blanks."""
    return " ".join(text.lower().translate(_NO_QUOTES).split())
