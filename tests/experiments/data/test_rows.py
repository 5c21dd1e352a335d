"""Rows of JSONL and CSV files: what is read, and what is said about a file that cannot be."""

import json
from pathlib import Path

import pytest

from lighter_freezers.experiments.data.rows import read_rows
from tests.texts import write_parquet


def written(folder: Path, name: str, content: str | bytes) -> Path:
    """A file with this content, byte for byte."""
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_jsonl_rows_keep_their_values_and_lines(tmp_path: Path) -> None:
    """Blank lines are passed over, Windows ends of lines are ends, and U+2028 in a string is none."""
    content = '{"text": "a", "id": 1}\r\n\n  \n{"text": "b\u2028c", "tags": ["x"]}'
    rows = read_rows(written(tmp_path, "rows.jsonl", content), ["text"])

    assert [(row.line, row.values) for row in rows] == [
        (1, {"text": "a", "id": 1}),
        (4, {"text": "b\u2028c", "tags": ["x"]}),
    ]


def test_csv_rows_keep_their_texts_and_lines(tmp_path: Path) -> None:
    """A row may go over several lines; it stands on the first of them. Columns come in any order."""
    content = 'score, text,id\n0.5,"two\nlines, ""quoted""",1\n\n,b,2\r\n'
    rows = read_rows(written(tmp_path, "rows.CSV", content), ["text", "score"])

    assert [(row.line, row.values) for row in rows] == [
        (2, {"score": "0.5", "text": 'two\nlines, "quoted"', "id": "1"}),
        (5, {"score": "", "text": "b", "id": "2"}),
    ]


@pytest.mark.parametrize(
    ("name", "content"), [("rows.jsonl", '{"text": "a"}\n'), ("rows.csv", '"text"\na\n')]
)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, content: str) -> None:
    """As Windows programs put it before UTF-8."""
    (row,) = read_rows(written(tmp_path, name, b"\xef\xbb\xbf" + content.encode()), ["text"])

    assert row.values == {"text": "a"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", "a", r"rows\.txt: expected the suffix \.jsonl, \.csv or \.parquet, got '\.txt'"),
        ("rows", "a", "expected the suffix .jsonl, .csv or .parquet, got 'none'"),
        ("empty.jsonl", "", r"empty\.jsonl has no rows\. Expected at least one with the fields text"),
        ("blank.jsonl", "\n \n", "has no rows"),
        ("empty.csv", "", "has no rows"),
        ("header.csv", "text\n", "has no rows"),
        (
            "latin.csv",
            b"text\na\ncaf\xe9\n",
            r"latin\.csv, line 3: expected UTF-8, got the byte 0xe9. Save the file as UTF-8",
        ),
        ("utf16.csv", "text\na\n".encode("utf-16"), r"utf16\.csv, line 1: expected UTF-8"),
        (
            "bad.jsonl",
            '{"text": "a"}\n{"text": "b"\n',
            r"bad\.jsonl, line 2: expected a JSON object, but Expecting ',' delimiter",
        ),
        ("deep.jsonl", "[" * 100_000, "line 1: expected a JSON object, but"),
        (
            "list.jsonl",
            '["a"]',
            r'line 1: expected a JSON object such as {"text": ...}, got \[\'a\'\] \(list\)',
        ),
        (
            "other.jsonl",
            '{"text": "a"}\n{"body": "b", "id": 1}',
            "line 2, field 'text': expected in every row, but this one has 'body', 'id'",
        ),
        ("none.jsonl", "{}", "line 1, field 'text': expected in every row, but this one has none"),
        ("other.csv", "body,id\na,1\n", "line 1: expected one column named 'text', got 'body', 'id'"),
        ("german.csv", "text;score\na;1\n", "line 1: expected one column named 'text', got 'text;score'"),
        ("twice.csv", "text,text\na,b\n", "expected one column named 'text', got 'text', 'text'"),
        (
            "comma.csv",
            "text,score\na,1\nb, c,1\n",
            r"line 3: expected 2 columns \(text, score\), got 3. .* in double quotes",
        ),
        ("short.csv", "text,score\n\na\n", "line 3: expected 2 columns .* got 1"),
        ("open.csv", 'text\na\n"b\nc\n', "line 3: expected comma-separated values, but"),
        ("long.csv", "text\n" + "a" * 200_000, "line 2: .*field larger than field limit.*jsonl"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    """The error names the file and the line, what was expected and what is there."""
    with pytest.raises(ValueError, match=message) as raised:
        read_rows(written(tmp_path, name, content), ["text"])
    assert str(tmp_path / name) in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the folder from which it was looked for."""
    with pytest.raises(ValueError, match=rf"rows\.jsonl does not exist \(working directory: {Path.cwd()}\)"):
        read_rows(tmp_path / "rows.jsonl", ["text"])


def test_a_long_value_is_shown_in_part(tmp_path: Path) -> None:
    """An error fits on a screen."""
    file = written(tmp_path, "rows.jsonl", json.dumps(["a" * 5000]))

    with pytest.raises(ValueError, match="expected a JSON object") as raised:
        read_rows(file, ["text"])
    assert len(str(raised.value)) < 300 + len(str(file))


def test_a_parquet_file_has_typed_fields_and_numbered_rows(tmp_path: Path) -> None:
    """As JSON has them; an error names the row, for such a file has no lines."""
    rows = [{"text": "a\nb", "score": 0.5, "tokens": ["a", "b"]}, {"text": "c", "score": None, "tokens": []}]
    file = write_parquet(tmp_path / "rows.parquet", rows)
    read = read_rows(file, ["text", "score"])

    assert [row.values for row in read] == rows
    assert str(read[1].error("score", "a number", "None")) == (
        f"{file}, row 2, field 'score': expected a number, got None."
    )
    with pytest.raises(ValueError, match=r"rows\.parquet, row 1, field 'label': expected in every row"):
        read_rows(file, ["label"])


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    """With the file's name."""
    (tmp_path / "rows.parquet").write_text("text\na\n")

    with pytest.raises(ValueError, match=r"rows\.parquet cannot be read as Parquet: "):
        read_rows(tmp_path / "rows.parquet", ["text"])


@pytest.mark.parametrize("name", ["a[1].parquet", "b*.parquet", "é #%20?.PARQUET", ".hidden/.c.parquet"])
def test_a_parquet_file_may_have_any_name(name: str, tmp_path: Path) -> None:
    """It is a name and no pattern; whole numbers stay exact, and nothing is copied to a cache."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    rows = [{"text": name, "number": 2**62 + 1, "nested": {"conds": [{"value": None}]}}]
    assert [row.values for row in read_rows(write_parquet(tmp_path / name, rows), ["text"])] == rows
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_a_parquet_file_of_a_type_that_is_unknown_is_named(tmp_path: Path) -> None:
    """`datasets` has no type for a map."""
    import pyarrow
    import pyarrow.parquet

    maps = pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "tags": maps}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet cannot be read as Parquet: Arrow type map"):
        read_rows(tmp_path / "rows.parquet", ["text"])


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    """As any other file without rows."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet has no rows"):
        read_rows(tmp_path / "rows.parquet", ["text"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "mr,ref,ref\na,b,c\n"),
        ("rows.csv", "mr,note,ref, note\na,b,c,d\n"),
        ("rows.jsonl", '{"mr": "a", "ref": "b", "ref": "c"}\n'),
    ],
)
def test_a_field_that_is_there_twice_is_refused(name: str, text: str, tmp_path: Path) -> None:
    """One of the two would be lost, whether or not the task needs it."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"rows\.\w+, line 1.*'(ref|note)' is there twice"):
        read_rows(tmp_path / name, ["mr"])
