"""What every metric over texts is given: predictions, and for each of them the texts that would be right."""

from collections.abc import Sequence

__all__ = ["check_pairs", "percent", "share"]


def check_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Make sure that predictions and references belong together.

    Args:
        predictions: One text per row; it may be empty, which is an answer like any other.
        references: For each prediction one or more texts, of which each would be right.

    Raises:
        TypeError: A text stands where a list belongs, or something else where a text belongs.
        ValueError: There is nothing to score, the numbers differ, or a row has no reference.
    """
    _check_list("predictions", predictions)
    if isinstance(references, str):
        raise TypeError(f"references must be a list of lists of texts. Got the text {references!r}.")
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} lists of references are no pairs. "
            "Give one list of references for each prediction, in the same order."
        )
    if not predictions:
        raise ValueError("There are no predictions to score. Generate at least one.")
    for row, texts in enumerate(references):
        _check_list(f"references[{row}]", texts)
        if not texts:
            raise ValueError(f"references[{row}] is empty. Give at least one text that would be right.")


def _check_list(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"{name} must be a list of texts. Got the text {texts!r}: write [{texts!r}].")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] must be a text. Got {text!r} ({type(text).__name__}).")


def share(hits: Sequence[bool]) -> float:
    """How many are true, 0 to 1."""
    return sum(hits) / len(hits)


def percent(values: Sequence[float]) -> float:
    """Mean of values between 0 and 1, as 0 to 100."""
    return 100 * sum(values) / len(values)
