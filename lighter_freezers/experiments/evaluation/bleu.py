"""BLEU-1 to BLEU-4 of whole corpora, with the numbers of sacrebleu; torchmetrics counts."""

from collections.abc import Sequence

from lighter_freezers.experiments.evaluation.text_metrics import check_pairs

__all__ = ["bleu"]

ORDERS = (1, 2, 3, 4)


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """How many n-grams of the predictions stand in a reference; 0 to 100.

    Counted over the corpus, lower-cased, in tokens of mteval 13a, without smoothing: a corpus without one
    4-gram in common with its references has BLEU-4 0. The same as sacrebleu with `lowercase=True`,
    `smooth_method="none"` and `max_ngram_order` 1 to 4, and as the scorer of the E2E challenge; the brevity
    penalty takes the reference closest in length, of two as close the shorter.
    [Papineni et al. 2002](https://aclanthology.org/P02-1040), [Post 2018](https://aclanthology.org/W18-6319).

    Args:
        predictions: One text per row.
        references: The texts that would be right, one or more per row.

    Returns:
        `bleu_1` to `bleu_4`, cumulative as in the papers: BLEU-n is the geometric mean of the precisions up
        to n. `bleu` is `bleu_4`.

    Raises:
        TypeError: Something is no list of texts.
        ValueError: Predictions and references do not belong together.
    """
    from torchmetrics.functional.text import sacre_bleu_score

    check_pairs(predictions, references)
    ordered = [_shortest_first(texts) for texts in references]
    figures = {
        f"bleu_{n}": 100 * float(sacre_bleu_score(predictions, ordered, n_gram=n, lowercase=True))
        for n in ORDERS
    }
    return {"bleu": figures["bleu_4"], **figures}


def _shortest_first(texts: Sequence[str]) -> list[str]:
    """In order of their tokens: of two references as close in length torchmetrics takes the first."""
    from torchmetrics.functional.text.sacre_bleu import _SacreBLEUTokenizer

    if len(texts) == 1:
        return list(texts)
    return sorted(texts, key=lambda text: len(_SacreBLEUTokenizer.tokenize(text, "13a", lowercase=True)))
