"""Reads the fields of a row: a text, words with labels, or a score. Anything else is an error."""

import re
from collections.abc import Sequence

from lighter_freezers.experiments.data.rows import Row, shown

__all__ = [
    "classes_of_rows",
    "clean_text",
    "field_among",
    "label_numbers",
    "labels_of",
    "score_of",
    "text_of",
    "words_of",
]

_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")  # of surrogates, which no encoding takes


def text_of(row: Row, field: str = "text") -> str:
    """The text of a row.

    Raises:
        ValueError: It is not a string, is blank, or is not valid Unicode.
    """
    return _text(row, field, row.values[field], "a text")


def clean_text(row: Row, *names: str) -> str:
    """The text of the first of these fields that a row has, stripped, with uniform line ends.

    Raises:
        ValueError: It has none of them, or the value is not a text.
    """
    return "\n".join(text_of(row, field_among(row, *names)).strip().splitlines())


def field_among(row: Row, *names: str) -> str:
    """The first of several names of a field that a row has.

    Raises:
        ValueError: It has none of them.
    """
    for name in names:
        if name in row.values:
            return name
    others = f" (or {', '.join(repr(name) for name in names[1:])})" if len(names) > 1 else ""
    there = ", ".join(repr(name) for name in row.values)
    raise row.error(names[0], f"in every row{others}", f"a row with {there or 'no fields'}")


def score_of(row: Row) -> float:
    """The score of a row, in [0, 1].

    Raises:
        ValueError: It is not a number, or out of range.
    """
    found = row.values["score"]
    value = _number_in(found) if isinstance(found, str) and row.is_text else found
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise row.error("score", "a number from 0 to 1", shown(found))  # NaN too, which compares false
    return float(value)


def _number_in(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def words_of(row: Row) -> tuple[str, ...]:
    """The words of a row, at least one.

    Raises:
        ValueError: They are not a list of words, or a word is blank.
    """
    return _strings(row, "tokens", "a word")


def labels_of(row: Row, num_words: int) -> tuple[str, ...]:
    """The names of the labels of a row, one for each word.

    Raises:
        ValueError: They are not a list of names, or not as many as there are words.
    """
    labels = _strings(row, "labels", "the name of a class")
    if len(labels) != num_words:
        raise row.error("labels", f"as many labels as 'tokens' has words, {num_words}", str(len(labels)))
    return labels


def _strings(row: Row, field: str, kind: str) -> tuple[str, ...]:
    found = row.values[field]
    if row.is_text:
        found = str(found).split()
    if not isinstance(found, list) or not found:
        expected = "words separated by spaces" if row.is_text else 'a list of strings such as ["a", "b"]'
        raise row.error(field, expected, shown(row.values[field]))
    return tuple(_text(row, f"{field}[{index}]", value, kind) for index, value in enumerate(found))


def _text(row: Row, field: str, found: object, kind: str) -> str:
    if not isinstance(found, str) or not found.strip():
        raise row.error(field, f"{kind} that is not blank", shown(found))
    if _HALF_OF_A_PAIR.search(found):
        raise row.error(field, f"{kind} in Unicode, without half of a surrogate pair", shown(found))
    return found


def classes_of_rows(rows: Sequence[Row]) -> tuple[str, ...]:
    """The names of all labels in the rows, in alphabetical order."""
    return tuple(sorted({label for row in rows for label in labels_of(row, len(words_of(row)))}))


def label_numbers(row: Row, labels: Sequence[str], class_names: Sequence[str], where_from: str) -> list[int]:
    """The number of each label among the names of the classes.

    Args:
        row: The row of the labels.
        labels: Its labels.
        class_names: The names of all classes.
        where_from: The origin of these names, for an error.

    Raises:
        ValueError: A label is not among them.
    """
    numbers = {name: index for index, name in enumerate(class_names)}
    for index, label in enumerate(labels):
        if label not in numbers:
            expected = f"a class {where_from} ({', '.join(class_names)})"
            raise row.error(f"labels[{index}]", expected, shown(label))
    return [numbers[label] for label in labels]
