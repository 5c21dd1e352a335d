"""SQL match: what makes two queries the same, and what does not."""

import pytest

from lighter_freezers.experiments.evaluation.sql_match import SqlQuery, parse_sql, sql_match

QUERY = "SELECT COUNT(Player Name) FROM table WHERE Goals > 1,000 AND Team = 'Red Sox'"
SAME = {
    "order of conditions": "SELECT COUNT(Player Name) FROM table WHERE Team = 'Red Sox' AND Goals > 1,000",
    "case": "select count(player name) from TABLE where goals > 1,000 and team = 'red sox'",
    "quotes": 'SELECT COUNT("Player Name") FROM table WHERE `Goals` > 1,000 AND Team = "Red Sox"',
    "numbers": "SELECT COUNT(Player Name) FROM table WHERE Goals > 1000.0 AND Team = 'Red Sox'",
    "white space": "SELECT COUNT( Player  Name )\nFROM table\nWHERE Goals>1000 AND Team='Red Sox' ;",
    "said twice": f"{QUERY} AND Goals > 1000",
    "table": QUERY.replace("table", "players"),
}
OTHER = {
    "aggregate": QUERY.replace("COUNT", "SUM"),
    "no aggregate": QUERY.replace("COUNT(Player Name)", "Player Name"),
    "column": QUERY.replace("Player Name", "Player"),
    "operator": QUERY.replace(">", "<"),
    "value": QUERY.replace("1,000", "1,001"),
    "condition missing": QUERY.split(" AND ")[0],
    "condition added": f"{QUERY} AND Year = 1999",
    "no conditions": QUERY.split(" WHERE ")[0],
    "text after it": f"{QUERY}\n\n### Question:",
    "no query": "Red Sox",
    "nothing": "",
}


@pytest.mark.parametrize("prediction", SAME.values(), ids=list(SAME))
def test_what_makes_no_difference(prediction: str) -> None:
    """How a query is written."""
    assert sql_match([prediction], [[QUERY]]) == {"sql_match": 1.0, "sql_unparsed": 0.0}


@pytest.mark.parametrize("prediction", OTHER.values(), ids=list(OTHER))
def test_what_makes_a_difference(prediction: str) -> None:
    """What a query asks."""
    assert sql_match([prediction], [[QUERY]])["sql_match"] == 0


def test_what_is_no_query_is_counted() -> None:
    """As a share of the rows."""
    figures = sql_match([QUERY, "Red Sox", "", "SELECT a FROM table WHERE b"], [[QUERY]] * 4)

    assert figures == {"sql_match": 0.25, "sql_unparsed": 0.75}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT Moved from FROM table", SqlQuery("", "moved from", frozenset())),
        ("SELECT Max speed FROM table", SqlQuery("", "max speed", frozenset())),
        ("SELECT a FROM table WHERE b OP 3", SqlQuery("", "a", frozenset({("b", "op", "3")}))),
        (
            "SELECT a FROM table WHERE b = Bread and Butter",
            SqlQuery("", "a", frozenset({("b", "=", "bread and butter")})),
        ),
        (
            "SELECT a FROM table WHERE Goals and Assists = 3 AND b = 1",
            SqlQuery("", "a", frozenset({("goals and assists", "=", "3"), ("b", "=", "1")})),
        ),
        (
            "SELECT a FROM table WHERE Size (>2) = 007",
            SqlQuery("", "a", frozenset({("size (>2)", "=", "007")})),
        ),
        ("SELECT a FROM table WHERE b <> -1.50", SqlQuery("", "a", frozenset({("b", "!=", "-1.5")}))),
        ("SELECT a FROM table WHERE b = ''", SqlQuery("", "a", frozenset({("b", "=", "")}))),
        ("SELECT a FROM table WHERE b = 'O''Brien'", SqlQuery("", "a", frozenset({("b", "=", "obrien")}))),
        ("SELECT a FROM table WHERE b", None),
        ("DELETE FROM table", None),
    ],
)
def test_reading_a_query(text: str, expected: SqlQuery | None) -> None:
    """Names of columns and values are free text: they may hold words of SQL."""
    assert parse_sql(text) == expected


def test_a_reference_that_is_no_query_is_compared_as_text() -> None:
    """A table with a column without a name has such questions."""
    assert sql_match(["select FROM table"], [["SELECT  FROM table"]])["sql_match"] == 1
