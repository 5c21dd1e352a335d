"""The guide to a data set of one's own, followed step by step in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lighter_freezers import GenerationDataModule
from lighter_freezers.experiments.data.prompts import (
    PromptedRow,
    PromptedTask,
    load_rows,
    prompt_with,
    prompted,
)
from lighter_freezers.experiments.data.rows import Row
from lighter_freezers.experiments.tasks.generation_tasks import TASKS
from lighter_freezers.experiments.tasks.task_files import files_by_split

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "guides" / "add_a_data_set.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.M | re.S)


def shell(command: str, folder: Path) -> str:
    """What a command prints, run as a user would."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(folder)}
    environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "400"}
    command = command.replace("PYTHONPATH=.", f"PYTHONPATH=.:{ROOT}")  # this checkout, installed or not
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.wide
def test_the_guide_leads_to_a_run(tmp_path: Path) -> None:
    """Its file, its data, its config and its commands; the file is outside the package."""
    task, data = blocks("python")
    (tmp_path / "news.py").write_text(task)
    (tmp_path / "data.py").write_text(data)
    shell("python data.py", tmp_path)
    init, fit, _ = blocks("bash")[0].splitlines()
    shell(init, tmp_path)
    assert "news, headlines; digest" in shell(f"{fit} trainer::max_steps=2", tmp_path)

    config = tmp_path / "configs" / "tasks" / "samsum.yaml"
    edited = {**yaml.safe_load(config.read_text()), **yaml.safe_load(blocks("yaml")[0])}
    (tmp_path / "news.yaml").write_text(yaml.safe_dump(edited))
    said = shell("PYTHONPATH=. lighter fit news.yaml trainer::max_steps=2", tmp_path)
    assert "Text, train: 24 rows" in said
    assert "Text, val: 6 rows" in said


def test_a_task_reads_rows_in_one_way() -> None:
    """A function of a row, or one of a file, and not both."""
    for readers in ({}, {"read": lambda row: None, "reader_of": lambda file: lambda row: None}):
        with pytest.raises(ValueError, match="The task news needs either `read`, .* or `reader_of`"):
            PromptedTask("news", ("rouge",), 8, **readers)


def test_what_is_no_row_is_refused(tmp_path: Path) -> None:
    """It was left out without a word."""
    (tmp_path / "train.jsonl").write_text('{"a": "1"}\n{"a": "2"}\n')
    good = PromptedRow("a", "b", ("b",), group="a")
    reader: Any = lambda row: good if row.line == 1 else "b"  # noqa: E731
    with pytest.raises(TypeError, match=r"train\.jsonl, line 2: news reads a row as .*, not as str"):
        load_rows(PromptedTask("news", ("rouge",), 8, read=reader), [tmp_path / "train.jsonl"], True)


def test_a_mistake_in_a_task_is_named_at_once() -> None:
    """A text for a tuple, an unknown metric; a split without patterns has those of every task."""
    for name, wrong in {"metrics": "rouge", "hub": "OWNER/NAME"}.items():
        options = {"metrics": ("rouge",), name: wrong}
        with pytest.raises(TypeError, match=f"The task news needs a tuple of texts as `{name}`"):
            PromptedTask("news", max_new_tokens=8, read=lambda row: None, **options)

    news = PromptedTask("news", ("rogue",), 8, {"train": ("learn*",)}, read=lambda row: None)
    with pytest.raises(ValueError, match="unknown metric 'rogue'"):
        GenerationDataModule(news, "folder")
    found = files_by_split(news, ["learn.csv", "dev.csv", "train.csv"])
    assert found == {"train": ["learn.csv"], "val": ["dev.csv"], "test": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence\tlabel\na\t1\nb", r"train\.tsv, row 2, field 'label': expected in every row"),
        ("sentence\tlabel\na\t2\n", r"train\.tsv, row 1, field 'label': expected 0 or 1, got '2'"),
        ("sentence\tlabel\na\t1\t0", r"train\.tsv, row 1: expected 2 columns, got 3"),
        ("sentence\tlabel\n", r"None of the 0 rows of .*train\.tsv can be used for sst2"),
        (b"sentence\tlabel\ncaf\xe9\t1\n", r"train\.tsv is not a file of SST-2 in UTF-8"),
    ],
)
def test_a_broken_row_of_sst2_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    """With the file, the row and the field; a quote in a sentence is a character."""
    file = tmp_path / "train.tsv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_rows(TASKS["sst2"], [file])

    file.write_text('\ufeffsentence\tlabel\n"a , b\t0\n')
    (row,) = load_rows(TASKS["sst2"], [file]).rows
    assert '### Sentence:\n"a , b\n' in row.prompt
    assert row.target == "negative"


def test_a_wrong_title_of_the_part_to_cut_is_named() -> None:
    """With the closest; where rows have an origin of their own too, whose prompts were never cut."""
    row, parts = Row(Path("rows.csv"), 1, {}, is_text=True), {"Article": "a", "Date": "b"}
    for origin in ("", "series"):
        with pytest.raises(ValueError, match=r"^cut='Artikel' is the title of no part .*Closest: 'Article'"):
            prompted(row, "Write.", parts, "Headline", "c", cut="Artikel", origin=origin)
    with pytest.raises(ValueError, match=r"^context='date' is the title of no part .*Closest: 'Date'"):
        prompt_with("Write.", parts, "Headline", context="date")
