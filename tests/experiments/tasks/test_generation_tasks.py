"""Rows of the four data sets as prompts and answers, in each form that they come in."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers import GenerationDataModule
from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.prompts import PromptedRow, held_out, load_rows, questions
from lighter_freezers.experiments.tasks.generation_tasks import TASKS, task_named
from lighter_freezers.experiments.tasks.task_files import FIXTURES, split_files
from tests.texts import write_parquet

MR = "name[The Mill], food[French]"
CHAT = {"id": "1", "dialogue": "A: Hi!\r\nB: Hello.", "summary": " They greet. "}
PAIR = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}
TABLE = {"id": "t", "header": ["Player", "School/Club", "No."], "types": ["text", "text", "real"], "rows": []}
QUERY = {"table_id": "t", "question": "Who?", "sql": {"sel": 0, "agg": 0, "conds": [[1, 0, "Rome"]]}}
FUNCTION = {"name": "m:f", "source": "def f():\n    return 1", "summary": "Give one back."}
EXAMPLES = {
    "e2e_nlg": {"mr": MR, "ref": "It is French."},
    "samsum": CHAT,
    "multi_nli": PAIR,
    "wikisql": QUERY,
    "docstrings": FUNCTION,
}
DATA_SETS = [name for name in TASKS if name != "docstrings"]
FIELDS = [(task, field) for task in EXAMPLES for field in EXAMPLES[task] if field not in ("id", "sql")]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the form that the suffix says, with WikiSQL's table beside them."""
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".parquet":
        write_parquet(file, rows)
    else:
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if file.suffix == ".jsonl":
        file.with_suffix(".tables.jsonl").write_text(json.dumps(TABLE) + "\n")
    return file


def read(task: str, folder: Path, *rows: dict[str, Any], suffix: str = ".jsonl") -> list[PromptedRow]:
    return list(load_rows(TASKS[task], [write(folder / f"rows{suffix}", list(rows))]).rows)


@pytest.mark.parametrize(
    ("task", "prompt", "target"),
    [
        (
            "e2e_nlg",
            "### Instruction: Describe the restaurant that has these attributes, in fluent English.\n\n"
            f"### Input:\n{MR}\n\n### Output:\n",
            "It is French.",
        ),
        (
            "samsum",
            "### Instruction: Summarise this conversation in a few words.\n\n"
            "### Dialogue:\nA: Hi!\nB: Hello.\n\n### Summary:\n",
            "They greet.",
        ),
        (
            "multi_nli",
            "### Instruction: Say how the hypothesis relates to the premise: entailment, neutral or "
            "contradiction.\n\n### Premise:\nIt rains.\n\n### Hypothesis:\nIt is wet.\n\n"
            "### Classification:\n",
            "entailment",
        ),
        (
            "wikisql",
            "### Instruction: Write the SQL query that answers the question about the table.\n\n"
            "### Table:\nPlayer, School/Club, No.\n\n### Question:\nWho?\n\n### SQL:\n",
            "SELECT Player FROM table WHERE School/Club = 'Rome'",
        ),
        (
            "docstrings",
            "### Instruction: Say in one line what this Python function does.\n\n"
            "### Function:\ndef f():\n    return 1\n\n### Summary:\n",
            "Give one back.",
        ),
    ],
)
def test_a_row_becomes_a_prompt_and_an_answer(task: str, prompt: str, target: str, tmp_path: Path) -> None:
    """Word for word; the answer has no blanks around it."""
    (row,) = read(task, tmp_path, EXAMPLES[task])

    assert (row.prompt, row.target, row.references) == (prompt, target, (target,))
    assert row.where == f"{tmp_path / 'rows.jsonl'}, line 1"


@pytest.mark.parametrize(
    ("task", "context"),
    [
        ("e2e_nlg", MR),
        ("samsum", "A: Hi!\nB: Hello."),
        ("multi_nli", "It rains."),
        ("wikisql", "Player, School/Club, No."),
        ("docstrings", "def f():\n    return 1"),
    ],
)
def test_the_context_is_the_part_with_the_data(task: str, context: str, tmp_path: Path) -> None:
    """That is what may be cut, and nothing else."""
    (row,) = read(task, tmp_path, EXAMPLES[task])

    assert row.prompt[slice(*row.context)] == context
    assert row.with_context(3) == row.prompt.replace(context, context[:3])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("task", ["e2e_nlg", "samsum", "multi_nli", "docstrings"])
def test_csv_and_parquet_give_the_rows_of_jsonl(task: str, suffix: str, tmp_path: Path) -> None:
    """Labels as numbers and line ends in a text included."""
    (expected,) = read(task, tmp_path, EXAMPLES[task])
    (row,) = read(task, tmp_path, EXAMPLES[task], suffix=suffix)

    assert (row.prompt, row.target, row.context) == (expected.prompt, expected.target, expected.context)


@pytest.mark.parametrize(("task", "field"), FIELDS)
@pytest.mark.parametrize("value", [None, 1.5, "  ", ["x"]], ids=str)
def test_a_wrong_value_names_file_row_and_field(task: str, field: str, value: Any, tmp_path: Path) -> None:
    """In whatever field of whatever task, after rows that are right."""
    wrong = {**EXAMPLES[task], field: value}

    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2, field '{field}': expected .+, got "):
        read(task, tmp_path, EXAMPLES[task], wrong)


@pytest.mark.parametrize(("task", "field"), [*FIELDS, ("wikisql", "sql")])
def test_a_missing_column_names_file_row_and_field(task: str, field: str, tmp_path: Path) -> None:
    """And what the row has instead."""
    less = {name: value for name, value in EXAMPLES[task].items() if name != field}

    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 1, field '{field}': expected "):
        read(task, tmp_path, less)


def test_a_wrong_row_of_a_parquet_file_is_named_by_its_number(tmp_path: Path) -> None:
    """A file like that has no lines."""
    with pytest.raises(ValueError, match=r"rows\.parquet, row 2, field 'summary': expected a text"):
        read("samsum", tmp_path, CHAT, {**CHAT, "summary": None}, suffix=".parquet")


def test_the_other_names_of_fields_are_understood(tmp_path: Path) -> None:
    """Those of the hub's E2E and of the original MultiNLI files."""
    (hub,) = read("e2e_nlg", tmp_path, {"meaning_representation": MR, "human_reference": "It is French."})
    (raw,) = read(
        "multi_nli", tmp_path, {"sentence1": "It rains.", "sentence2": "It is wet.", "gold_label": "neutral"}
    )

    assert hub.group == MR
    assert hub.target == "It is French."
    assert "It rains." in raw.prompt
    assert raw.target == "neutral"


def test_references_are_grouped_by_meaning_representation(tmp_path: Path) -> None:
    """Each answer counts once, in order, and each question is asked once."""
    refs = ["One.", "Two.", "One."]
    others = [{"mr": "name[Other]", "ref": "Three."}]
    rows = read("e2e_nlg", tmp_path, *[{"mr": MR, "ref": ref} for ref in refs], *others)

    assert [row.references for row in rows] == [("One.", "Two.")] * 3 + [("Three.",)]
    assert [[row.target for row in group] for group in questions(rows)] == [
        ["One.", "Two.", "One."],
        ["Three."],
    ]


@pytest.mark.parametrize(("label", "name"), [(0, "entailment"), (1, "neutral"), (2, "contradiction")])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_labels_are_numbers_or_names(label: int, name: str, suffix: str, tmp_path: Path) -> None:
    """In every kind of file."""
    for value in (label, name):
        (row,) = read("multi_nli", tmp_path, {**PAIR, "label": value}, suffix=suffix)
        assert row.target == name


@pytest.mark.parametrize("label", [3, -2, "maybe", "Neutral", True, None, 1.0, "1"], ids=repr)
def test_a_wrong_label_is_an_error(label: Any, tmp_path: Path) -> None:
    """It is no neutral."""
    expected = r"field 'label': expected 0 or 'entailment', 1 or 'neutral', 2 or 'contradiction', or -1"
    with pytest.raises(ValueError, match=expected):
        read("multi_nli", tmp_path, {**PAIR, "label": label})


@pytest.mark.parametrize(("field", "label"), [("label", -1), ("gold_label", "-")])
def test_pairs_without_a_label_are_left_out_and_counted(field: str, label: Any, tmp_path: Path) -> None:
    """That is the data's own convention."""
    pair = {"premise": "It rains.", "hypothesis": "It is wet."}
    file = write(tmp_path / "rows.jsonl", [PAIR, {**pair, field: label}, {**pair, field: label}])
    loaded = load_rows(TASKS["multi_nli"], [file])

    assert [row.target for row in loaded.rows] == ["entailment"]
    assert (loaded.num_without_answer, loaded.num_bad) == (2, 0)


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    """With the error of the first; but not all of them."""
    file = write(tmp_path / "rows.jsonl", [CHAT, {**CHAT, "summary": ""}, {**CHAT, "dialogue": None}])
    loaded = load_rows(TASKS["samsum"], [file], drop_bad=True)

    assert (len(loaded.rows), loaded.num_bad) == (1, 2)
    assert "line 2, field 'summary': expected a text that is not blank" in loaded.first_error
    none = write(tmp_path / "none.jsonl", [{**CHAT, "summary": ""}])
    with pytest.raises(
        ValueError, match=r"None of the 1 rows of .*none\.jsonl can be used for samsum.*'summary'"
    ):
        load_rows(TASKS["samsum"], [none], drop_bad=True)


def test_a_split_holds_whole_origins_out(tmp_path: Path) -> None:
    """A tenth of them, the same ones in any order of the rows."""
    rows = read(
        "e2e_nlg",
        tmp_path,
        *[{"mr": f"name[{n}]", "ref": f"{n}{letter}"} for letter in "abc" for n in range(40)],
    )
    train, val = held_out(rows)
    _, again = held_out(rows[::-1])

    assert len(val) == 12
    assert len(train) == 108
    assert {row.origin for row in train} & {row.origin for row in val} == set()
    assert {row.origin for row in val} == {row.origin for row in again}


@pytest.mark.parametrize("task", DATA_SETS)
def test_fixtures_are_small_whole_and_without_overlap(task: str) -> None:
    """20 to 50 rows for each data set; no prompt and no origin is in two splits."""
    files = split_files(TASKS[task], "fixture")
    splits = {split: load_rows(TASKS[task], files.of(split)) for split in SPLITS}
    rows = {split: loaded.rows for split, loaded in splits.items()}
    num_rows = sum(len(loaded.rows) + loaded.num_without_answer for loaded in splits.values())
    num_tables = len(list((FIXTURES / task).glob("*.tables.jsonl")))

    assert 20 <= num_rows <= 50
    assert num_tables == (3 if task == "wikisql" else 0)
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert {row.origin for row in rows[one]} & {row.origin for row in rows[other]} == set()
        assert {row.prompt for row in rows[one]} & {row.prompt for row in rows[other]} == set()


def test_fixtures_show_what_is_particular_to_each_data_set() -> None:
    """Several references, labels of all kinds, and all aggregations and operators."""
    loaded = {name: load_rows(TASKS[name], split_files(TASKS[name], "fixture").train) for name in DATA_SETS}
    queries = " ".join(row.target for row in loaded["wikisql"].rows)

    assert max(len(row.references) for row in loaded["e2e_nlg"].rows) == 3
    assert {row.target for row in loaded["multi_nli"].rows} == {"entailment", "neutral", "contradiction"}
    assert loaded["multi_nli"].num_without_answer == 1
    assert all(f" {word}(" in queries for word in ("MAX", "MIN", "COUNT", "SUM", "AVG"))
    assert all(f" {operator} " in queries for operator in "=<>")
    assert "Winter''s End" in queries


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e2e", "no task 'e2e'. Known: docstrings, e2e_nlg, multi_nli, samsum, squad, sst2, wikisql"),
        ("no_such_module.NEWS", r"task='no_such_module\.NEWS' cannot be imported: No module named"),
        ("json.dumps", "task='json.dumps' is a function, not a PromptedTask"),
        (3, "no task 3"),
    ],
)
def test_an_unknown_task_is_answered_with_what_would_work(name: object, message: str) -> None:
    """By name, by path, and for another type."""
    with pytest.raises(ValueError, match=message):
        task_named(name)


OWN = """
import xml.etree.ElementTree as tree

from lighter_freezers.experiments import PromptedRow, PromptedTask, Row, clean_text, prompt_with


def rows(file):
    for number, item in enumerate(tree.parse(file).getroot(), start=1):
        yield Row(file, number, {child.tag: child.text for child in item}, is_text=True)


def read(row):
    article, headline = clean_text(row, "article"), clean_text(row, "headline")
    prompt, context = prompt_with("Write a headline.", {"Article": article}, "Headline", context="Article")
    return PromptedRow(prompt, headline, (headline,), row.where, article, row.where, context)


NEWS = PromptedTask(
    name="news",
    metrics=("rouge",),
    max_new_tokens=8,
    patterns={"train": ("train*",), "val": ("val*",), "test": ("test*",)},
    reader_of=lambda file: read,
    formats={".xml": rows},
)
"""


def test_a_task_of_ones_own_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a format that the package does not know; from a folder and as files, by path and as an object."""
    (tmp_path / "own_news_task.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    items = "".join(
        f"<i><article>Number {n} won.</article><headline>{n} wins</headline></i>" for n in range(9)
    )
    for split in ("train", "val"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.xml").write_text(f"<rows>{items}</rows>")

    sizes = {"vocab_size": 300, "batch_size": 1, "cache_dir": tmp_path}
    data = GenerationDataModule("own_news_task.NEWS", tmp_path / "data", **sizes)
    data.prepare_data()
    data.setup("fit")
    assert data.task.name == "news"
    assert len(list(data.train_dataloader())) == 9
    again = GenerationDataModule(data.task, train_file=tmp_path / "data" / "train.xml", **sizes)
    again.prepare_data()
    again.setup("fit")
    assert len(list(again.train_dataloader())) == 8  # one is held out
    with pytest.raises(ValueError, match="news needs `source:`: A folder or an archive; or give"):
        GenerationDataModule("own_news_task.NEWS")


def test_a_broken_file_of_squad_is_named(tmp_path: Path) -> None:
    """With the key that it lacks."""
    file = tmp_path / "train.json"
    file.write_text('{"data": [{"title": "no paragraphs"}]}')
    with pytest.raises(ValueError, match=r"train\.json is not a file of SQuAD 1\.1: KeyError: 'paragraphs'"):
        load_rows(TASKS["squad"], [file])


def test_squad_has_several_references_for_a_question() -> None:
    """Its test file has several answers to each."""
    rows = load_rows(TASKS["squad"], split_files(TASKS["squad"], "fixture").test).rows
    assert {row.references for row in rows} >= {("six metres", "six metres high"), ("oats",)}
