"""ROUGE: torchmetrics' own implementation decides, and arithmetic."""

import pytest
import torch
from torchmetrics.functional.text.rouge import rouge_score

from lighter_freezers.experiments.evaluation.rouge import rouge, sentences

PREDICTIONS = ["Anna buys the tickets, Ben brings cake.", "They meet at 7.30 at the station", ""]
REFERENCES = [
    ["Ben brings a cake and Anna buys the tickets.", "Anna will buy tickets."],
    ["They will meet at the station at half past seven."],
    ["Nobody comes."],
]


@pytest.mark.parametrize(
    ("figure", "key"), [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")]
)
def test_the_figures_are_those_of_torchmetrics(figure: str, key: str) -> None:
    """The best reference of each row, without stemming; an empty answer is 0."""
    expected = rouge_score(PREDICTIONS, REFERENCES, accumulate="best", rouge_keys=key)

    torch.testing.assert_close(
        torch.tensor(rouge(PREDICTIONS, REFERENCES)[figure]), 100 * expected[f"{key}_fmeasure"]
    )


def test_by_hand() -> None:
    """Four of five words each way, two of four pairs; in order "the cat on" or "the cat mat"."""
    figures = rouge(["the cat sat on mat"], [["the cat was mat on"]])

    assert figures["rouge_1"] == pytest.approx(80)
    assert figures["rouge_2"] == pytest.approx(25)
    assert figures["rouge_l"] == pytest.approx(60)


def test_a_summary_may_say_its_sentences_in_another_order() -> None:
    """Lsum compares sentence by sentence, L the text as a whole."""
    figures = rouge(["B c d. A e f?"], [["A e f! B c d."]])

    assert figures["rouge_lsum"] == pytest.approx(100)
    assert figures["rouge_l"] == pytest.approx(50)


def test_where_sentences_end() -> None:
    """At a full stop before white space and at line breaks; not within a number."""
    assert sentences(" It costs 3.50. Really?\nYes ") == "It costs 3.50.\nReally?\nYes"


def test_the_order_of_references_does_not_count() -> None:
    """The best one does."""
    backwards = [row[::-1] for row in REFERENCES]

    assert rouge(PREDICTIONS, REFERENCES) == rouge(PREDICTIONS, backwards)
