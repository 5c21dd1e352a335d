"""Accuracy of written labels: which answers count as one."""

import pytest

from lighter_freezers.experiments.evaluation.label_accuracy import label_accuracy, parse_label

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
def test_a_strict_reading(answer: str, label: str | None) -> None:
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
