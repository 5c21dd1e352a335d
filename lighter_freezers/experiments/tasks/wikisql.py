"""WikiSQL: a table's columns and a question -> the SQL query that answers it.

A row has `question` and `sql`, numbers for the column, the aggregation and the conditions. It names its table
by `table_id`, in a file of tables next to the rows, `train.tables.jsonl` next to `train.jsonl`, as in the
archive of the data set; or it contains the `table`, like the hub's rows.
"""

from collections.abc import Mapping
from pathlib import Path

from lighter_freezers.experiments.data.fields import clean_text, field_among
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, RowReader, prompt_with
from lighter_freezers.experiments.data.rows import Row, read_rows, shown
from lighter_freezers.experiments.tasks.sql_of_numbers import Table, sql_of, table_of

__all__ = ["WIKISQL"]

INSTRUCTION = "Write the SQL query that answers the question about the table."
ARCHIVE = "https://github.com/salesforce/WikiSQL/raw/master/data.tar.bz2"


def _reader_of(file: Path) -> RowReader:
    """Read the tables next to a file of rows, if there are any."""
    tables_file = file.with_suffix(f".tables{file.suffix}")
    tables: dict[str, Table] = {}
    if tables_file.is_file():
        for row in read_rows(tables_file, ["id", "header", "types"]):
            tables[clean_text(row, "id")] = table_of(row, "", row.values)

    def read(row: Row) -> PromptedRow:
        question = clean_text(row, "question")
        table_id, table = _table(row, tables, tables_file)
        query = sql_of(row, table)
        parts = {"Table": ", ".join(table.columns), "Question": question}
        prompt, context = prompt_with(INSTRUCTION, parts, answer="SQL", context="Table")
        return PromptedRow(
            prompt, query, (query,), group=row.where, origin=table_id, where=row.where, context=context
        )

    return read


def _table(row: Row, tables: Mapping[str, Table], tables_file: Path) -> tuple[str, Table]:
    """The table of a row, with its name."""
    if field_among(row, "table_id", "table") == "table":
        found = row.values["table"]
        if not isinstance(found, dict):
            raise row.error("table", "a table with its 'header' and 'types'", shown(found))
        return str(found.get("id") or found.get("header")), table_of(row, "table.", found)
    table_id = clean_text(row, "table_id")
    if table_id not in tables:
        there = f"which has {len(tables)} tables" if tables else "which does not exist or is empty"
        raise row.error("table_id", f"the id of a table in {tables_file}, {there}", shown(table_id))
    return table_id, tables[table_id]


WIKISQL = PromptedTask(
    name="wikisql",
    metrics=("exact_match", "sql_match"),
    max_new_tokens=128,
    patterns={"train": ("train*",), "val": ("dev*", "val*"), "test": ("test*",)},
    reader_of=_reader_of,
    hub=(ARCHIVE,),
)
