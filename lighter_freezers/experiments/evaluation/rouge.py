"""ROUGE-1, -2, -L and -Lsum, counted by the package rouge-score."""

import re
from collections.abc import Sequence

from lighter_freezers.experiments.evaluation.text_metrics import check_pairs, percent

__all__ = ["rouge", "sentences"]

_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """How much of the references the predictions say, and the other way round; F1, 0 to 100.

    The mean over rows of the best reference of each, without stemming. Words are runs of the letters a to z
    and digits, lower-cased: other scripts count nothing. `rouge_lsum` compares sentence by sentence; a
    sentence ends at a line break, and at ".", "!" or "?" before white space, abbreviations included.
    [Lin 2004](https://aclanthology.org/W04-1013).

    Args:
        predictions: One text per row.
        references: The texts that would be right, one or more per row.

    Returns:
        `rouge_1`, `rouge_2`, `rouge_l`, `rouge_lsum`.

    Raises:
        ImportError: The package rouge-score is not installed.
        TypeError: Something is no list of texts.
        ValueError: Predictions and references do not belong together.
    """
    check_pairs(predictions, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError('ROUGE needs rouge-score: pip install "lighter-freezers[experiments]".') from error
    scorer = RougeScorer(list(_KINDS.values()), use_stemmer=False, split_summaries=False)
    scores = [
        scorer.score_multi([sentences(text) for text in texts], sentences(prediction))
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return {name: percent([float(row[kind].fmeasure) for row in scores]) for name, kind in _KINDS.items()}


def sentences(text: str) -> str:
    """A text with each of its sentences on a line of its own."""
    return "\n".join(_END_OF_SENTENCE.split(text.strip()))
