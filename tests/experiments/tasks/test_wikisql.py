"""SQL rebuilt from WikiSQL's numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers.experiments.data.prompts import load_rows
from lighter_freezers.experiments.evaluation.sql_match import parse_sql
from lighter_freezers.experiments.tasks.wikisql import WIKISQL
from tests.texts import write_parquet

TABLE = {"id": "1-7", "header": ["Player", "School/Club  Team", "No."], "types": ["text", "text", "real"]}


def target(folder: Path, sql: Any, table: dict[str, Any] = TABLE, table_id: str = "1-7") -> str:
    """The query of one row of an archive."""
    (folder / "dev.tables.jsonl").write_text(json.dumps(table) + "\n")
    row = {"phase": 1, "table_id": table_id, "question": "Which?", "sql": sql}
    (folder / "dev.jsonl").write_text(json.dumps(row) + "\n")
    return load_rows(WIKISQL, [folder / "dev.jsonl"]).rows[0].target


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ({"sel": 0, "agg": 0, "conds": []}, "SELECT Player FROM table"),
        ({"sel": 2, "agg": 1, "conds": []}, "SELECT MAX(No.) FROM table"),
        ({"sel": 2, "agg": 2, "conds": []}, "SELECT MIN(No.) FROM table"),
        ({"sel": 2, "agg": 4, "conds": []}, "SELECT SUM(No.) FROM table"),
        ({"sel": 2, "agg": 5, "conds": []}, "SELECT AVG(No.) FROM table"),
        (
            {"sel": 0, "agg": 3, "conds": [[1, 0, "Toronto"], [2, 1, 3]]},
            "SELECT COUNT(Player) FROM table WHERE School/Club Team = 'Toronto' AND No. > 3",
        ),
        ({"sel": 0, "agg": 0, "conds": [[2, 2, "4.5"]]}, "SELECT Player FROM table WHERE No. < 4.5"),
        ({"sel": 0, "agg": 0, "conds": [[2, 0, "n/a"]]}, "SELECT Player FROM table WHERE No. = 'n/a'"),
        ({"sel": 2, "agg": 0, "conds": [[0, 0, "O'Neil"]]}, "SELECT No. FROM table WHERE Player = 'O''Neil'"),
        ({"sel": 2, "agg": 0, "conds": [[0, 0, 7]]}, "SELECT No. FROM table WHERE Player = '7'"),
        ({"sel": 2, "agg": 0, "conds": [[2, 0, "nan"]]}, "SELECT No. FROM table WHERE No. = 'nan'"),
    ],
)
def test_numbers_become_a_query(sql: Any, expected: str, tmp_path: Path) -> None:
    """Columns bare, texts in single quotes, numbers of number columns bare; the metric can read it."""
    assert target(tmp_path, sql) == expected
    assert parse_sql(expected) is not None


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ({"sel": 3, "agg": 0, "conds": []}, r"'sql.sel': expected a whole number from 0 to 2, got 3"),
        ({"sel": -1, "agg": 0, "conds": []}, r"'sql.sel': expected a whole number from 0 to 2, got -1"),
        ({"sel": True, "agg": 0, "conds": []}, r"'sql.sel': expected a whole number .* got True \(bool\)"),
        ({"sel": 0, "agg": 6, "conds": []}, r"'sql.agg': expected a whole number from 0 to 5, got 6"),
        ({"agg": 0, "conds": []}, r"'sql.sel': expected a whole number from 0 to 2, got None"),
        ({"sel": 0, "agg": 0, "conds": [[5, 0, "x"]]}, r"'sql.conds\[0\]\[0\]': .* from 0 to 2, got 5"),
        ({"sel": 0, "agg": 0, "conds": [[0, 3, "x"]]}, r"'sql.conds\[0\]\[1\]': .* from 0 to 2, got 3"),
        (
            {"sel": 0, "agg": 0, "conds": [[0, 0, None]]},
            r"'sql.conds\[0\]\[2\]': expected a text or a",
        ),
        ({"sel": 0, "agg": 0, "conds": [[0, 0]]}, r"'sql.conds\[0\]': expected \[column, operator, value\]"),
        ({"sel": 0, "agg": 0}, r"'sql.conds': expected a list of conditions"),
        ("SELECT 1", r"'sql': expected an object with sel, agg and conds, got 'SELECT 1'"),
    ],
)
def test_a_number_that_stands_for_nothing_names_row_and_field(sql: Any, message: str, tmp_path: Path) -> None:
    """No column is made up, and no condition left out."""
    with pytest.raises(ValueError, match=rf"dev\.jsonl, line 1, field {message}"):
        target(tmp_path, sql)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {**TABLE, "types": ["text"]},
            r"tables\.jsonl, line 1, field 'types': expected as many .* 3, got 1",
        ),
        (
            {**TABLE, "header": "Player"},
            r"tables\.jsonl, line 1, field 'header': expected a list of strings",
        ),
        (
            {**TABLE, "id": "1-8"},
            r"dev\.jsonl, line 1, field 'table_id': expected the id .*1 tables",
        ),
    ],
)
def test_a_wrong_table_is_an_error(table: dict[str, Any], message: str, tmp_path: Path) -> None:
    """In the file where it stands."""
    with pytest.raises(ValueError, match=message):
        target(tmp_path, {"sel": 0, "agg": 0, "conds": []}, table)


def test_rows_without_their_file_of_tables_say_so(tmp_path: Path) -> None:
    """It is named."""
    row = {"table_id": "1", "question": "Which?", "sql": {"sel": 0, "agg": 0, "conds": []}}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")

    with pytest.raises(ValueError, match=r"a table in .*train\.tables\.jsonl, which does not exist"):
        load_rows(WIKISQL, [tmp_path / "train.jsonl"])


def test_the_hubs_rows_have_their_table_in_themselves(tmp_path: Path) -> None:
    """Conditions are three lists there, and all values strings."""
    conditions = {"column_index": [1, 2], "operator_index": [0, 1], "condition": ["Toronto", "3"]}
    row = {
        "question": "How many?",
        "table": {key: TABLE[key] for key in ("id", "header", "types")},
        "sql": {"human_readable": "...", "sel": 0, "agg": 3, "conds": conditions},
    }
    write_parquet(tmp_path / "train.parquet", [row])
    (loaded,) = load_rows(WIKISQL, [tmp_path / "train.parquet"]).rows

    assert loaded.target == "SELECT COUNT(Player) FROM table WHERE School/Club Team = 'Toronto' AND No. > 3"
    assert loaded.origin == "1-7"
