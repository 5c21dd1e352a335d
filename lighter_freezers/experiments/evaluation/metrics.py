"""The metrics over texts, by the names that tasks and configs use."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from lighter_freezers._extras import require
from lighter_freezers.experiments.evaluation.sql_match import sql_match
from lighter_freezers.experiments.evaluation.text_metrics import (
    bleu,
    exact_match,
    label_accuracy,
    meteor,
    rouge,
)
from lighter_freezers.selection.names import closest_names

__all__ = ["METRICS", "check_metric_names", "check_metric_packages", "score_texts"]

TextMetric: TypeAlias = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]

# BLEU, ROUGE and METEOR are from 0 to 100, as in papers; shares from 0 to 1.
METRICS: Mapping[str, TextMetric] = {
    "bleu": bleu,
    "rouge": rouge,
    "meteor": meteor,
    "exact_match": exact_match,
    "sql_match": sql_match,
    "accuracy": label_accuracy,
}
_PACKAGES = {"bleu": "sacrebleu", "rouge": "rouge_score", "meteor": "nltk"}  # optional, that they need


def score_texts(
    names: Iterable[str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    labels: Collection[str] = (),
) -> dict[str, float]:
    """Score predictions by several metrics.

    Args:
        names: Of `METRICS`.
        predictions: One text per row; it may be empty.
        references: The correct texts, one or more per row.
        labels: All labels that there are, for accuracy. Empty for those that occur in the references.

    Returns:
        Figure -> value; a metric may have several figures.

    Raises:
        TypeError: An argument is not a list of texts.
        ValueError: A name is unknown, or predictions and references do not belong together.
    """
    chosen = check_metric_names(names)
    metrics: dict[str, TextMetric] = {**METRICS, "accuracy": partial(label_accuracy, labels=labels or None)}
    return {
        figure: value for name in chosen for figure, value in metrics[name](predictions, references).items()
    }


def check_metric_names(names: Iterable[str]) -> tuple[str, ...]:
    """Check that metrics exist, before anything is generated for them.

    Returns:
        The names, each once.

    Raises:
        TypeError: It is a single text.
        ValueError: A name is unknown.
    """
    if isinstance(names, str):
        raise TypeError(f"metrics must be a list of names. Got the text {names!r}: write [{names}].")
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in METRICS:
            close = closest_names(str(name), METRICS, 1)[0]
            raise ValueError(
                f"metrics: unknown metric {name!r}. Closest: '{close}'. All: {', '.join(METRICS)}."
            )
    return chosen


def check_metric_packages(names: Iterable[str]) -> None:
    """Check that the packages of metrics are installed, before anything is generated for them.

    Args:
        names: Of `METRICS`.

    Raises:
        ImportError: A package for one of them is not installed.
    """
    for name in names:
        if name in _PACKAGES:
            require(f"The metric {name}", _PACKAGES[name])
