"""Builds SQL from the numbers in WikiSQL: column, aggregation and conditions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lighter_freezers.experiments.data.rows import Row, shown

__all__ = ["AGGREGATIONS", "OPERATORS", "Table", "sql_of", "table_of"]

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


def table_of(row: Row, prefix: str, fields: Mapping[str, object]) -> Table:
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


def sql_of(row: Row, table: Table) -> str:
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
