"""All metrics over texts: their names, their figures, and what they refuse."""

import sys
from typing import Any

import pytest

from lighter_freezers.experiments.evaluation.metrics import (
    METRICS,
    check_metric_names,
    check_metric_packages,
    score_texts,
)

PERCENT = {"bleu", "rouge", "meteor"}


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_answer_has_the_most_and_an_empty_one_the_least(name: str) -> None:
    """0 to 100 for what papers give in percent, 0 to 1 for shares."""
    answer = "SELECT a FROM table WHERE b = 1"
    most = 100 if name in PERCENT else 1
    tolerance = 0.1 if name == "meteor" else 1e-3  # its penalty for one chunk of nine tokens remains
    headline = {"meteor": "meteor_nltk", "rouge": "rouge_l"}.get(name, name)

    assert METRICS[name]([answer], [[answer]])[headline] == pytest.approx(most, abs=tolerance)
    assert METRICS[name]([""], [[answer]])[headline] == 0


def test_several_metrics_in_one_go() -> None:
    """Their figures side by side, under names that do not clash."""
    figures = score_texts(METRICS, ["a b"], [["a b"]])

    assert list(figures) == [
        *("bleu", "bleu_1", "bleu_2", "bleu_3", "bleu_4"),
        *("rouge_1", "rouge_2", "rouge_l", "rouge_lsum", "meteor_nltk"),
        *("exact_match", "sql_match", "sql_unparsed", "accuracy", "unparsed"),
    ]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        ([], [], ValueError, "no predictions to score"),
        (["a"], [["a"], ["b"]], ValueError, "1 predictions and 2 lists of references"),
        (["a", "b"], [["a"], []], ValueError, r"references\[1\] is empty"),
        ("a", [["a"]], TypeError, "predictions must be a list of texts"),
        (["a"], ["a"], TypeError, r"references\[0\] must be a list of texts.*write \['a'\]"),
        (["a"], "a", TypeError, "references must be a list of lists"),
        ([None], [["a"]], TypeError, r"predictions\[0\] must be a text. Got None"),
    ],
)
def test_what_is_no_pair_is_refused(
    name: str, predictions: Any, references: Any, error: type[Exception], message: str
) -> None:
    """By every metric, in the same words."""
    with pytest.raises(error, match=message):
        METRICS[name](predictions, references)


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    """Before anything is generated for it."""
    with pytest.raises(ValueError, match="unknown metric 'rogue'. Closest: 'rouge'. All: bleu, rouge"):
        check_metric_names(["bleu", "rogue"])
    with pytest.raises(TypeError, match=r"write \[bleu\]"):
        check_metric_names("bleu")


def test_a_missing_package_is_told_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the metrics it is for; those that need nothing are fine."""
    check_metric_packages(METRICS)
    monkeypatch.setitem(sys.modules, "nltk", None)
    check_metric_packages(["bleu", "accuracy"])

    with pytest.raises(ImportError, match=r"The metric meteor needs nltk.*lighter-freezers\[experiments\]"):
        check_metric_packages(METRICS)
