"""BLEU: sacrebleu decides."""

import pytest
import sacrebleu

from lighter_freezers.experiments.evaluation.bleu import bleu

PREDICTIONS = [
    "The Olive Press, a pub by the river, serves Greek food.",
    "Rosa's kitchen isn't family-friendly; it costs 12.50 a head.",
    "a cheap place",
]
REFERENCES = [
    [
        "The Olive Press is a pub by the river that serves Greek food.",
        "By the river, the press is Greek.",
    ],
    ["Rosa's kitchen is not family-friendly and costs 12.50 a head."],
    ["It is a cheap place.", "Cheap, near the station, and good.", "A cheap place to eat"],
]


def by_sacrebleu(predictions: list[str], references: list[list[str]], order: int) -> float:
    """With None where a row has fewer references than another."""
    metric = sacrebleu.BLEU(lowercase=True, smooth_method="none", max_ngram_order=order, tokenize="13a")
    columns = [
        [row[i] if i < len(row) else None for row in references] for i in range(max(map(len, references)))
    ]
    return float(metric.corpus_score(predictions, columns).score)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_figures_are_those_of_sacrebleu(order: int) -> None:
    """Over a corpus with unequal numbers of references, punctuation, digits and capitals."""
    figures = bleu(PREDICTIONS, REFERENCES)

    assert figures[f"bleu_{order}"] == pytest.approx(by_sacrebleu(PREDICTIONS, REFERENCES, order), abs=1e-3)
    assert figures["bleu"] == figures["bleu_4"]


@pytest.mark.parametrize("order", ["longer first", "shorter first"])
def test_of_two_references_as_close_the_shorter_counts(order: str) -> None:
    """Whatever their order: so do sacrebleu and the script of NIST."""
    references = ["a b c d f g", "a b c d"]
    rows = [references if order == "longer first" else references[::-1]]

    expected = by_sacrebleu(["a b c d e"], rows, 4)
    assert expected == pytest.approx(66.87, abs=0.01)
    assert bleu(["a b c d e"], rows)["bleu"] == pytest.approx(expected, abs=1e-3)


def test_the_lengths_of_references_are_counted_in_tokens() -> None:
    """Not in letters: the shorter of these two has more of them."""
    rows = [["a b c d f g", "a b c discombobulated"]]

    expected = by_sacrebleu(["a b c d e"], rows, 1)
    assert bleu(["a b c d e"], rows)["bleu_1"] == pytest.approx(expected, abs=1e-3)


def test_by_hand() -> None:
    """Five of six words, three of five pairs, no brevity penalty."""
    figures = bleu(["the cat sat on the mat"], [["the cat is on the mat"]])

    assert figures["bleu_1"] == pytest.approx(100 * 5 / 6, abs=1e-3)
    assert figures["bleu_2"] == pytest.approx(100 * (5 / 6 * 3 / 5) ** 0.5, abs=1e-3)
    assert figures["bleu_4"] == 0  # no four words in a row


@pytest.mark.parametrize(("prediction", "expected"), [("", 0.0), ("A b c d.", 100.0)])
def test_nothing_and_everything(prediction: str, expected: float) -> None:
    """An empty answer scores 0; case does not count."""
    assert bleu([prediction], [["a B c D."]])["bleu"] == pytest.approx(expected, abs=1e-3)
