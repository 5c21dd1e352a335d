"""METEOR by NLTK's parameters: the formula of 2007, by hand."""

import pytest

from lighter_freezers.experiments.evaluation.meteor import meteor


def formula(matches: int, chunks: int, num_predicted: int, num_reference: int) -> float:
    """Lavie and Agarwal 2007, with alpha 0.9, beta 3, gamma 0.5."""
    precision, recall = matches / num_predicted, matches / num_reference
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return 100 * mean * (1 - 0.5 * (chunks / matches) ** 3)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat down", "The cat sat", formula(3, 1, 4, 3)),
        ("sat the cat", "the cat sat", formula(3, 2, 3, 3)),
        ("cats walked", "the cat walks", formula(2, 1, 2, 3)),  # by their stems
        ("a pub.", "a pub .", formula(3, 1, 3, 3)),  # a full stop is a token, attached or not
        ("a big pub", "a large pub", formula(2, 2, 3, 3)),  # synonyms are not known
        ("nothing", "in common", 0.0),
        ("", "a reference", 0.0),
    ],
)
def test_the_formula(prediction: str, reference: str, expected: float) -> None:
    """Matches by word and by stem; a penalty for every break in their order."""
    assert meteor([prediction], [[reference]]) == {"meteor_nltk": pytest.approx(expected)}


def test_the_best_reference_of_each_row_counts() -> None:
    """And the mean over the rows."""
    figures = meteor(["a b c", "x"], [["y", "a b c"], ["z"]])

    assert figures["meteor_nltk"] == pytest.approx(formula(3, 1, 3, 3) / 2)
