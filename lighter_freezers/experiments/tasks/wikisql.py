"""WikiSQL: a table's columns and a question -> the SQL query that answers it.

A row has `question` and `sql`, numbers for the column, the aggregation and the conditions. It names its table
by `table_id`, in a file of tables next to the rows, `train.tables.jsonl` next to `train.jsonl`, as in the
archive of the data set; or it contains the `table`, like the hub's rows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lighter_freezers.experiments.data.fields import clean_text, field_among
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, RowReader, prompted
from lighter_freezers.experiments.data.rows import Row, read_rows, shown

__all__ = ["WIKISQL"]

INSTRUCTION = "Write the SQL query that answers the question about the table."
ARCHIVE = "https://github.com/salesforce/WikiSQL/raw/master/data.tar.bz2"
AGGREGATIONS = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class Table:
    """The columns of a table and their types.

    Args:
        columns: The names of its columns.
        types: The type of each column, `text` or `real`.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]


def _table_of(row: Row, prefix: str, fields: Mapping[str, object]) -> Table:
    """The table in `header` and `types` among the fields of a row.

    Args:
        row: The row, for errors.
        prefix: A prefix of their names in errors.
        fields: Lists of strings by name.

    Raises:
        ValueError: They are not lists of strings of equal length.
    """
    lists = []
    for name in ("header", "types"):
        found = fields.get(name)
        if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
            raise row.error(f"{prefix}{name}", "a list of strings, at least one", shown(found))
        lists.append(tuple(" ".join(text.split()) for text in found))
    columns, types = lists
    if len(types) != len(columns):
        raise row.error(
            f"{prefix}types", f"as many as the header has columns, {len(columns)}", str(len(types))
        )
    return Table(columns, types)


def _sql_of(row: Row, table: Table) -> str:
    """The query in `sql`, such as `SELECT COUNT(Player) FROM table WHERE Team = 'Lions' AND Goals > 3`.

    Column names are written as in the header. The value of a condition on a text column is in single quotes,
    with quotes in it doubled. On a column of numbers a number is not quoted, any other value is.

    Raises:
        ValueError: A number is not that of a column, an aggregation or an operator, or a value is missing.
    """
    sql = row.values.get("sql")
    if not isinstance(sql, dict):
        raise row.error("sql", "an object with sel, agg and conds", shown(sql))
    column = table.columns[_number(row, "sql.sel", sql.get("sel"), len(table.columns))]
    aggregation = AGGREGATIONS[_number(row, "sql.agg", sql.get("agg"), len(AGGREGATIONS))]
    selected = f"{aggregation}({column})" if aggregation else column
    conditions = [
        _condition(row, f"sql.conds[{index}]", condition, table)
        for index, condition in enumerate(_conditions(row, sql.get("conds")))
    ]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {selected} FROM table{where}"


def _conditions(row: Row, found: object) -> list[object]:
    """Triples [column, operator, value]; the hub has one list for each of the three."""
    if isinstance(found, dict):
        lists = [found.get(name) for name in ("column_index", "operator_index", "condition")]
        if all(isinstance(one, list) for one in lists) and len({len(one or []) for one in lists}) == 1:
            return [list(triple) for triple in zip(*lists, strict=True)]
    elif isinstance(found, list):
        return found
    raise row.error("sql.conds", "a list of conditions [column, operator, value]", shown(found))


def _condition(row: Row, field: str, found: object, table: Table) -> str:
    if not isinstance(found, list) or len(found) != 3:
        raise row.error(field, "[column, operator, value]", shown(found))
    column = _number(row, f"{field}[0]", found[0], len(table.columns))
    operator = OPERATORS[_number(row, f"{field}[1]", found[1], len(OPERATORS))]
    value = found[2]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise row.error(f"{field}[2]", "a text or a number", shown(value))
    return f"{table.columns[column]} {operator} {_value(str(value).strip(), table.types[column])}"


def _value(text: str, column_type: str) -> str:
    if column_type == "real" and NUMBER.fullmatch(text):
        return text
    return "'" + text.replace("'", "''") + "'"


def _number(row: Row, field: str, found: object, count: int) -> int:
    """An index from 0 to count - 1."""
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < count:
        raise row.error(field, f"a whole number from 0 to {count - 1}", shown(found))
    return found


def _reader_of(file: Path) -> RowReader:
    """Read the tables next to a file of rows, if there are any."""
    tables_file = file.with_suffix(f".tables{file.suffix}")
    tables: dict[str, Table] = {}
    if tables_file.is_file():
        for row in read_rows(tables_file, ["id", "header", "types"]):
            tables[clean_text(row, "id")] = _table_of(row, "", row.values)

    def read(row: Row) -> PromptedRow:
        question = clean_text(row, "question")
        table_id, table = _table(row, tables, tables_file)
        query = _sql_of(row, table)
        parts = {"Table": ", ".join(table.columns), "Question": question}
        return prompted(row, INSTRUCTION, parts, "SQL", query, cut="Table", origin=table_id)

    return read


def _table(row: Row, tables: Mapping[str, Table], tables_file: Path) -> tuple[str, Table]:
    """The table of a row, with its name."""
    if field_among(row, "table_id", "table") == "table":
        found = row.values["table"]
        if not isinstance(found, dict):
            raise row.error("table", "a table with its 'header' and 'types'", shown(found))
        return str(found.get("id") or found.get("header")), _table_of(row, "table.", found)
    table_id = clean_text(row, "table_id")
    if table_id not in tables:
        there = f"which has {len(tables)} tables" if tables else "which does not exist or is empty"
        raise row.error("table_id", f"the id of a table in {tables_file}, {there}", shown(table_id))
    return table_id, tables[table_id]


WIKISQL = PromptedTask(
    name="wikisql",
    metrics=("exact_match", "sql_match"),
    max_new_tokens=128,
    reader_of=_reader_of,
    hub=(ARCHIVE,),
)
