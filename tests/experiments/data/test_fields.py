"""What the fields of a row may hold, and the error about each that holds something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers.experiments.data.fields import (
    classes_of_rows,
    label_numbers,
    labels_of,
    score_of,
    text_of,
    words_of,
)
from lighter_freezers.experiments.data.rows import Row

FILE = Path("rows.jsonl")


def json_row(**values: object) -> Row:
    """Line 7 of a JSONL file."""
    return Row(FILE, 7, values, is_text=False)


def csv_row(**values: object) -> Row:
    """Line 7 of a CSV file."""
    return Row(FILE, 7, values, is_text=True)


def labels(row: Row) -> tuple[str, ...]:
    return labels_of(row, len(words_of(row)))


def test_good_fields_are_taken_as_they_are() -> None:
    """Texts with their blanks, numbers with and without a point, words with blanks in a JSONL file."""
    assert text_of(json_row(text=" a\n")) == " a\n"
    assert score_of(json_row(score=1)) == 1.0
    assert score_of(csv_row(score=" 0.25 ")) == 0.25
    assert words_of(json_row(tokens=["New York", "."])) == ("New York", ".")
    assert words_of(csv_row(tokens=" a  b ")) == ("a", "b")
    assert labels(csv_row(tokens="a b", labels="X O")) == ("X", "O")


@pytest.mark.parametrize(
    ("check", "row", "message"),
    [
        (
            text_of,
            json_row(text=5),
            r"field 'text': expected a text that is not blank, got 5 \(int\)",
        ),
        (text_of, json_row(text=None), r"got None \(NoneType\)"),
        (text_of, json_row(text=" \n"), r"not blank, got ' \\n'\."),
        (text_of, csv_row(text=""), "not blank, got ''"),
        (text_of, json_row(text="a\ud800"), "in Unicode, without half of a surrogate pair"),
        (score_of, json_row(score="0.5"), "field 'score': expected a number from 0 to 1, got '0.5'"),
        (score_of, json_row(score=float("nan")), r"got nan \(float\)"),
        (score_of, json_row(score=float("inf")), r"got inf \(float\)"),
        (score_of, json_row(score=True), r"got True \(bool\)"),
        (score_of, json_row(score=10**400), r"got 1000.*\.\.\. \(int\)"),
        (score_of, json_row(score=-0.1), r"got -0\.1"),
        (score_of, csv_row(score="1.4"), r"got '1\.4'"),
        (score_of, csv_row(score="nan"), "got 'nan'"),
        (score_of, csv_row(score="0,5"), "got '0,5'"),
        (score_of, csv_row(score=""), "got ''"),
        (
            words_of,
            json_row(tokens="a b"),
            r'expected a list of strings such as \["a", "b"\], got',
        ),
        (words_of, json_row(tokens=[]), r"got \[\] \(list\)"),
        (
            words_of,
            json_row(tokens=["a", ""]),
            r"'tokens\[1\]': expected a word that is not blank, got ''",
        ),
        (words_of, json_row(tokens=["a", 3]), r"field 'tokens\[1\]': .*, got 3 \(int\)"),
        (words_of, csv_row(tokens=" "), "expected words separated by spaces, got ' '"),
        (labels, json_row(tokens=["a"], labels=[3]), r"field 'labels\[0\]': expected the name of a class"),
        (
            labels,
            json_row(tokens=["a", "b"], labels=["X"]),
            "field 'labels': expected as many labels as 'tokens' has words, 2, got 1",
        ),
        (labels, csv_row(tokens="a", labels="X X"), "as 'tokens' has words, 1, got 2"),
    ],
)
def test_a_bad_field_is_refused(check: Callable[[Row], Any], row: Row, message: str) -> None:
    """The error names file, line and field, what was expected and what is there."""
    with pytest.raises(ValueError, match=message) as raised:
        check(row)
    assert str(raised.value).startswith("rows.jsonl, line 7, field '")


def test_classes_are_collected_in_alphabetical_order() -> None:
    """Whatever the order of the rows."""
    rows = [json_row(tokens=["a", "b"], labels=["O", "B"]), json_row(tokens=["c"], labels=["A"])]

    assert classes_of_rows(rows) == classes_of_rows(rows[::-1]) == ("A", "B", "O")


def test_a_label_that_is_no_class_is_refused() -> None:
    """The error names the place in the row and the classes that there are."""
    assert label_numbers(json_row(), ["O", "B"], ["B", "O"], "of x") == [1, 0]
    with pytest.raises(
        ValueError, match=r"line 7, field 'labels\[1\]': expected a class of train.jsonl \(B, O\), got 'b'"
    ):
        label_numbers(json_row(), ["O", "b"], ["B", "O"], "of train.jsonl")
