"""METEOR as NLTK counts it, without WordNet. Not the METEOR 1.5 of the E2E challenge."""

import re
from collections.abc import Sequence

from lighter_freezers.experiments.evaluation.text_metrics import check_pairs, percent

__all__ = ["meteor"]

_TOKEN = re.compile(r"\w+|[^\w\s]")


class _NoSynonyms:
    """A WordNet that knows no word: NLTK then matches words and stems only, and needs no data."""

    def synsets(self, word: str) -> list[object]:
        return []


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """How many words of a prediction stand in a reference, as they are or by their stem, and in order.

    The mean over rows of the best reference of each, 0 to 100, with the parameters of 2007 (alpha 0.9,
    beta 3, gamma 0.5), over words and punctuation marks, lower-cased, Porter stems, no synonyms.
    [Lavie and Agarwal 2007](https://aclanthology.org/W07-0734).
    Published METEOR figures are mostly those of METEOR 1.5, a Java program with tables of paraphrases. They
    are much lower, and not to be compared with these: hence the name.

    Args:
        predictions: One text per row.
        references: The texts that would be right, one or more per row.

    Returns:
        `meteor_nltk`.

    Raises:
        ImportError: NLTK is not installed.
        TypeError: Something is no list of texts.
        ValueError: Predictions and references do not belong together.
    """
    check_pairs(predictions, references)
    try:
        from nltk.translate.meteor_score import meteor_score
    except ImportError as error:
        raise ImportError('METEOR needs NLTK: pip install "lighter-freezers[experiments]".') from error
    scores = [
        float(meteor_score([_tokens(text) for text in texts], _tokens(prediction), wordnet=_NoSynonyms()))
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return {"meteor_nltk": percent(scores)}


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)
