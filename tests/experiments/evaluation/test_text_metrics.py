"""BLEU, ROUGE, METEOR, exact matches and labels: against other packages and by hand."""

import pytest
import torch
from torchmetrics.functional.text import sacre_bleu_score
from torchmetrics.functional.text.rouge import rouge_score

from lighter_freezers.experiments.evaluation.text_metrics import (
    bleu,
    exact_match,
    label_accuracy,
    meteor,
    parse_label,
    rouge,
    sentences,
)

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


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_figures_are_those_of_torchmetrics(order: int) -> None:
    """Over a corpus with unequal numbers of references, punctuation, digits and capitals."""
    figures = bleu(PREDICTIONS, REFERENCES)
    expected = 100 * float(sacre_bleu_score(PREDICTIONS, REFERENCES, n_gram=order, lowercase=True))

    assert figures[f"bleu_{order}"] == pytest.approx(expected, abs=1e-3)
    assert figures["bleu"] == figures["bleu_4"]


@pytest.mark.parametrize("order", ["longer first", "shorter first"])
def test_of_two_references_as_close_the_shorter_counts(order: str) -> None:
    """Whatever their order, as in the script of NIST: no brevity penalty."""
    references = ["a b c d f g", "a b c d"]
    rows = [references if order == "longer first" else references[::-1]]

    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert bleu(["a b c d e"], rows)["bleu"] == pytest.approx(expected, abs=1e-3)


def test_the_lengths_of_references_are_counted_in_tokens() -> None:
    """Not in letters: the shorter of these two has more of them."""
    rows = [["a b c d f g", "a b c discombobulated"]]

    assert bleu(["a b c d e"], rows)["bleu_1"] == pytest.approx(100 * 4 / 5, abs=1e-3)


def test_bleu_by_hand() -> None:
    """Five of six words, three of five pairs, no brevity penalty."""
    figures = bleu(["the cat sat on the mat"], [["the cat is on the mat"]])

    assert figures["bleu_1"] == pytest.approx(100 * 5 / 6, abs=1e-3)
    assert figures["bleu_2"] == pytest.approx(100 * (5 / 6 * 3 / 5) ** 0.5, abs=1e-3)
    assert figures["bleu_4"] == 0  # no four words in a row


@pytest.mark.parametrize(("prediction", "expected"), [("", 0.0), ("A b c d.", 100.0)])
def test_bleu_of_nothing_and_everything(prediction: str, expected: float) -> None:
    """An empty answer scores 0; case does not count."""
    assert bleu([prediction], [["a B c D."]])["bleu"] == pytest.approx(expected, abs=1e-3)


SUMMARIES = ["Anna buys the tickets, Ben brings cake.", "They meet at 7.30 at the station", ""]
REFERENCE_SUMMARIES = [
    ["Ben brings a cake and Anna buys the tickets.", "Anna will buy tickets."],
    ["They will meet at the station at half past seven."],
    ["Nobody comes."],
]


@pytest.mark.parametrize(
    ("figure", "key"), [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")]
)
def test_rouge_is_that_of_torchmetrics(figure: str, key: str) -> None:
    """The best reference of each row, without stemming; an empty answer is 0."""
    expected = rouge_score(SUMMARIES, REFERENCE_SUMMARIES, accumulate="best", rouge_keys=key)

    torch.testing.assert_close(
        torch.tensor(rouge(SUMMARIES, REFERENCE_SUMMARIES)[figure]), 100 * expected[f"{key}_fmeasure"]
    )


def test_rouge_by_hand() -> None:
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


def test_for_rouge_the_order_of_references_does_not_count() -> None:
    """The best one does."""
    backwards = [row[::-1] for row in REFERENCE_SUMMARIES]

    assert rouge(SUMMARIES, REFERENCE_SUMMARIES) == rouge(SUMMARIES, backwards)


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
def test_the_formula_of_meteor(prediction: str, reference: str, expected: float) -> None:
    """Matches by word and by stem; a penalty for every break in their order."""
    assert meteor([prediction], [[reference]]) == {"meteor_nltk": pytest.approx(expected)}


def test_meteor_takes_the_best_reference_of_each_row_counts() -> None:
    """And the mean over the rows."""
    figures = meteor(["a b c", "x"], [["y", "a b c"], ["z"]])

    assert figures["meteor_nltk"] == pytest.approx(formula(3, 1, 3, 3) / 2)


@pytest.mark.parametrize(
    ("prediction", "is_match"),
    [
        ('SELECT  "a"\tFROM table ', True),
        ("select 'a' from table", True),
        ("select a from\ntable", True),
        ("select \u201ca\u201d from table", True),
        ("select a from table.", False),
        ("select a from table ### more", False),
        ("selecta from table", False),
        ("", False),
    ],
)
def test_case_quotes_and_white_space_are_forgiven(prediction: str, is_match: bool) -> None:
    """Nothing else is."""
    assert exact_match([prediction], [["SELECT a FROM table"]]) == {"exact_match": float(is_match)}


def test_an_exact_match_with_any_reference_will_do() -> None:
    """And the figure is a share of the rows."""
    assert exact_match(["b", "b", "b"], [["a", "B"], ["a"], ["'b'"]])["exact_match"] == pytest.approx(2 / 3)


LABELS = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("neutral", "neutral"),
        (" Neutral.\n", "neutral"),
        ("**contradiction**", "contradiction"),
        ("entailment, since both say so", "entailment"),
        ("neutral neutral neutral", "neutral"),
        ("entailment or neutral", None),
        ("not entailment", None),
        ("The answer is neutral", None),
        ("neutrally", None),
        ("", None),
    ],
)
def test_a_strict_reading_of_labels(answer: str, label: str | None) -> None:
    """The whole answer or its first word, and no other label after it."""
    assert parse_label(answer, LABELS) == label


def test_what_says_no_label_is_wrong_and_counted() -> None:
    """Of four answers one is right, one is wrong, two say nothing."""
    answers = ["neutral", "neutral", "entailment or neutral", "maybe"]
    references = [["Neutral"], ["entailment"], ["neutral"], ["contradiction"]]

    assert label_accuracy(answers, references) == {"accuracy": 0.25, "unparsed": 0.5}


def test_labels_that_never_are_right_can_be_named() -> None:
    """By themselves only the labels in the references are known."""
    assert label_accuracy(["neutral"], [["entailment"]])["unparsed"] == 1
    assert label_accuracy(["neutral"], [["entailment"]], labels=LABELS) == {"accuracy": 0.0, "unparsed": 0.0}


def test_labels_of_several_words() -> None:
    """They count where they are the whole answer."""
    assert label_accuracy(["Not Sure!", "not sure at all"], [["not sure"]] * 2) == {
        "accuracy": 0.5,
        "unparsed": 0.5,
    }
