"""Whether two WikiSQL queries have the same meaning, without running them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lighter_freezers.experiments.evaluation.text_metrics import check_pairs, normalised

__all__ = ["SqlQuery", "parse_sql", "sql_match"]

_QUERY = re.compile(r"select\s+(?P<select>.+?)\s+from\s+\S+?(?:\s+where\s+(?P<where>.+?))?\s*;?", re.I | re.S)
_AGGREGATE = re.compile(r"(?P<aggregate>max|min|count|sum|avg)\s*\((?P<column>.*)\)", re.I | re.S)
_SPACED_OPERATOR = re.compile(r"\s(?P<operator><=|>=|!=|<>|=|<|>|OP)\s", re.I)
_OPERATOR = re.compile(r"(?P<operator><=|>=|!=|<>|=|<|>)")
_NUMBER = re.compile(r"(?P<sign>-?)(?P<whole>0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+)(?:\.(?P<decimals>\d+))?")


@dataclass(frozen=True)
class SqlQuery:
    """The meaning of a query, independent of its notation.

    Attributes:
        aggregate: `max`, `min`, `count`, `sum`, `avg`, or "" for the values themselves.
        column: What is selected.
        conditions: (column, operator, value) of each, without order.
    """

    aggregate: str
    column: str
    conditions: frozenset[tuple[str, str, str]]


def sql_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The share of predicted queries with the same meaning as one of their references, 0 to 1.

    It compares the aggregate, the selected column and the set of conditions. The order of the conditions,
    case, quotation marks, white space, a semicolon at the end and the format of numbers (`1,000`, `1000`,
    `1000.0`) are ignored. The table is not compared: a question of WikiSQL has only one. Nothing is run, so
    two queries that select the same rows in different ways do not match.

    Args:
        predictions: One text per row.
        references: The correct queries, one or more per row.

    Returns:
        `sql_match`, and `sql_unparsed`, the share of predictions that are not such a query.

    Raises:
        TypeError: An argument is not a list of texts.
        ValueError: Predictions and references do not match.
    """
    check_pairs(predictions, references)
    asked = [_meaning(text) for text in predictions]
    wanted = [{_meaning(text) for text in texts} for texts in references]
    return {
        "sql_match": fmean([query in queries for query, queries in zip(asked, wanted, strict=True)]),
        "sql_unparsed": fmean([isinstance(query, str) for query in asked]),
    }


def parse_sql(text: str) -> SqlQuery | None:
    """Read `SELECT column FROM table WHERE c op v AND c op v`, or `SELECT AGGREGATE(column) ...`.

    Args:
        text: Any text.

    Returns:
        The query, or None if the text is not such a query.
    """
    query = _QUERY.fullmatch(text.strip())
    if query is None:
        return None
    aggregate = _AGGREGATE.fullmatch(query["select"].strip())
    column = aggregate["column"] if aggregate else query["select"]
    conditions = [_condition(part) for part in _split_conditions(query["where"] or "")]
    known = frozenset(condition for condition in conditions if condition is not None)
    is_whole = None not in conditions
    name = aggregate["aggregate"].lower() if aggregate else ""
    return SqlQuery(name, _bare(column), known) if is_whole else None


def _meaning(text: str) -> SqlQuery | str:
    """The parsed query, or the text itself where it is not one, which then only equals itself."""
    return parse_sql(text) or normalised(text)


def _split_conditions(where: str) -> list[str]:
    """Split at each AND; a part without an operator joins its neighbour, as in "Salt AND Pepper = 3"."""
    word = r"\s+AND\s+" if re.search(r"\sAND\s", where) else r"\s+and\s+"
    parts: list[str] = []
    for part in re.split(word, where) if where else []:
        if parts and None in (_operator(parts[-1]), _operator(part)):
            parts[-1] += f" and {part}"
        else:
            parts.append(part)
    return parts


def _operator(condition: str) -> re.Match[str] | None:
    """The first operator between spaces, or else the first of all: column names may contain one."""
    return _SPACED_OPERATOR.search(condition) or _OPERATOR.search(condition)


def _condition(text: str) -> tuple[str, str, str] | None:
    found = _operator(text)
    if found is None:
        return None
    operator = {"<>": "!="}.get(found["operator"], found["operator"].lower())
    return _bare(text[: found.start()]), operator, _value(text[found.end() :])


def _bare(name: str) -> str:
    return normalised(name.strip().strip("[]"))


def _value(text: str) -> str:
    """A text without quotation marks, or a number in canonical form."""
    bare = normalised(text)
    number = _NUMBER.fullmatch(bare)
    if number is None:
        return bare
    decimals = (number["decimals"] or "").rstrip("0")
    return number["sign"] + number["whole"].replace(",", "") + (f".{decimals}" if decimals else "")
