"""Metrics over texts: BLEU, ROUGE, METEOR, exact matches and labels, of predictions and their references."""

import re
from collections.abc import Collection, Sequence
from itertools import zip_longest
from statistics import fmean

from lighter_freezers._extras import require

__all__ = [
    "bleu",
    "check_pairs",
    "exact_match",
    "label_accuracy",
    "meteor",
    "normalised",
    "parse_label",
    "percent",
    "rouge",
    "sentences",
]


def check_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Check that predictions and references match.

    Args:
        predictions: One text per row, which may be empty.
        references: For each prediction one or more correct texts.

    Raises:
        TypeError: A text is given instead of a list, or something else instead of a text.
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


def percent(values: Sequence[float]) -> float:
    """The mean of values between 0 and 1, scaled to 0 to 100."""
    return 100 * sum(values) / len(values)


ORDERS = (1, 2, 3, 4)


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The precision of n-grams of the predictions in the references; 0 to 100.

    Counted over the corpus by sacrebleu, lower-cased, in tokens of mteval 13a, without smoothing, as in the
    scorer of the E2E challenge: a corpus without one 4-gram in common with its references has BLEU-4 0. The
    brevity penalty uses the reference closest in length, and of two equally close ones the shorter. [Papineni
    et al. 2002](https://aclanthology.org/P02-1040), [Post 2018](https://aclanthology.org/W18-6319).

    Args:
        predictions: One text per row.
        references: The correct texts, one or more per row.

    Returns:
        `bleu_1` to `bleu_4`, cumulative as in the papers: BLEU-n is the geometric mean of the precisions up
        to n. `bleu` is `bleu_4`.

    Raises:
        ImportError: sacrebleu is not installed.
        TypeError: An argument is not a list of texts.
        ValueError: Predictions and references do not match.
    """
    check_pairs(predictions, references)
    require("BLEU", "sacrebleu")
    from sacrebleu.metrics.bleu import BLEU

    streams = [list(texts) for texts in zip_longest(*references)]  # the first of each row, the second, ...
    figures = {}
    for order in ORDERS:
        metric = BLEU(lowercase=True, force=True, smooth_method="none", max_ngram_order=order)
        figures[f"bleu_{order}"] = float(metric.corpus_score(list(predictions), streams).score)
    return {"bleu": figures["bleu_4"], **figures}


_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")
_KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The overlap of predictions and references; F1, 0 to 100.

    The mean over rows of the best reference of each, without stemming. Words are runs of the letters a to z
    and digits, lower-cased: other scripts are ignored. `rouge_lsum` compares sentence by sentence; a sentence
    ends at a line break, and at ".", "!" or "?" before white space, abbreviations included. [Lin
    2004](https://aclanthology.org/W04-1013).

    Args:
        predictions: One text per row.
        references: The correct texts, one or more per row.

    Returns:
        `rouge_1`, `rouge_2`, `rouge_l`, `rouge_lsum`.

    Raises:
        ImportError: The package rouge-score is not installed.
        TypeError: An argument is not a list of texts.
        ValueError: Predictions and references do not match.
    """
    check_pairs(predictions, references)
    require("ROUGE", "rouge_score")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(_KINDS.values()), use_stemmer=False, split_summaries=False)
    scores = [
        scorer.score_multi([sentences(text) for text in texts], sentences(prediction))
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return {name: percent([float(row[kind].fmeasure) for row in scores]) for name, kind in _KINDS.items()}


def sentences(text: str) -> str:
    """A text with each of its sentences on a line of its own."""
    return "\n".join(_END_OF_SENTENCE.split(text.strip()))


_TOKEN = re.compile(r"\w+|[^\w\s]")


class _NoSynonyms:
    """An empty WordNet: NLTK then matches words and stems only, and needs no data."""

    def synsets(self, word: str) -> list[object]:
        return []


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """How many words of a prediction occur in a reference, literally or by stem, and in order.

    The mean over rows of the best reference of each, 0 to 100, with the parameters of 2007 (alpha 0.9,
    beta 3, gamma 0.5), over words and punctuation marks, lower-cased, Porter stems, no synonyms.
    [Lavie and Agarwal 2007](https://aclanthology.org/W07-0734).
    Published METEOR scores are mostly those of METEOR 1.5, a Java program with tables of paraphrases. They
    are much lower and not comparable with these, hence the name.

    Args:
        predictions: One text per row.
        references: The correct texts, one or more per row.

    Returns:
        `meteor_nltk`.

    Raises:
        ImportError: NLTK is not installed.
        TypeError: An argument is not a list of texts.
        ValueError: Predictions and references do not match.
    """
    check_pairs(predictions, references)
    require("METEOR", "nltk")
    from nltk.translate.meteor_score import meteor_score

    scores = [
        float(meteor_score([_tokens(text) for text in texts], _tokens(prediction), wordnet=_NoSynonyms()))
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return {"meteor_nltk": percent(scores)}


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


_NO_QUOTES = str.maketrans("", "", "\"'`\u2018\u2019\u201c\u201d")


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The share of predictions that equal one of their references, 0 to 1.

    Both are lower-cased and stripped of quotation marks and white space at their ends, and inner white space
    becomes single spaces. Nothing else is ignored: a prediction that continues after the answer is wrong.

    Args:
        predictions: One text per row.
        references: The correct texts, one or more per row.

    Returns:
        `exact_match`.

    Raises:
        TypeError: An argument is not a list of texts.
        ValueError: Predictions and references do not match.
    """
    check_pairs(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return {"exact_match": fmean([normalised(text) in map(normalised, texts) for text, texts in pairs])}


def normalised(text: str) -> str:
    """A text in lower case, without quotation marks, with single spaces."""
    return " ".join(text.lower().translate(_NO_QUOTES).split())


_WORD = re.compile(r"\w+(?:[-']\w+)*")
_AROUND = " \t\r\n.,;:!?\"'`*()[]"


def label_accuracy(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    labels: Collection[str] | None = None,
) -> dict[str, float]:
    """The share of answers with the correct label, 0 to 1; `parse_label` defines how answers are read.

    Args:
        predictions: One text per row.
        references: The correct label of each row, or several.
        labels: All labels. None for those that occur in the references.

    Returns:
        `accuracy`, and `unparsed`, the share of answers with no label or more than one, which count as wrong.

    Raises:
        TypeError: An argument is not a list of texts.
        ValueError: Predictions and references do not match.
    """
    check_pairs(predictions, references)
    right = [{_tidy(label) for label in row} for row in references]
    known = {_tidy(label) for label in labels} if labels is not None else set().union(*right)
    said = [parse_label(prediction, known) for prediction in predictions]
    return {
        "accuracy": fmean([label in row for label, row in zip(said, right, strict=True)]),
        "unparsed": fmean([label is None for label in said]),
    }


def parse_label(answer: str, labels: Collection[str]) -> str | None:
    """Parse the label in an answer.

    Either the whole answer is a label, or its first word is one and no other label follows. Case and
    punctuation around the answer are ignored. A label in the middle of a sentence does not count.

    Args:
        answer: The generated text.
        labels: All labels, lower-cased.

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
