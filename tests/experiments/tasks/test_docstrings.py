"""Functions without their docstrings, and the first lines of these."""

import ast
import json
from pathlib import Path

import pytest

from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.prompts import load_rows
from lighter_freezers.experiments.data.standard_library import standard_library
from lighter_freezers.experiments.tasks.docstrings import DOCSTRINGS, library_docstrings, summarised_functions
from lighter_freezers.experiments.tasks.task_files import split_files

MODULE = '''
class Area:
    @property
    def width(self):
        """Return the width in metres.

        More about it.
        """
        return self._width

    async def wait(self, *,
                   until=None):
        r"""
        Wait until the \\d area is free.
        """
        # why
        await until

def too_short(x):
    """Return it."""
    return x

def nothing_else(x):
    """Say that there is nothing to do."""

def one_line(x): """Say it all in one line."""; return x

def silent(x):
    return x

def outer(x):
    "Add one to a number."
    def inner(y):
        """Give back what was given."""
        return y
    return inner(x) + 1
'''


def test_functions_lose_their_docstring_and_keep_the_rest() -> None:
    """Indented as if they stood alone; what says too little, or nothing else, is passed over."""
    assert sorted(summarised_functions(MODULE)) == [
        ("inner", "def inner(y):\n    return y", "Give back what was given."),
        (
            "outer",
            'def outer(x):\n    def inner(y):\n        """Give back what was given."""\n        return y\n'
            "    return inner(x) + 1",
            "Add one to a number.",
        ),
        (
            "wait",
            "async def wait(self, *,\n               until=None):\n    # why\n    await until",
            "Wait until the \\d area is free.",
        ),
        ("width", "def width(self):\n    return self._width", "Return the width in metres."),
    ]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_other_systems_make_no_difference(end: str) -> None:
    """The parser takes them all for ends of lines."""
    assert list(summarised_functions(MODULE.replace("\n", end))) == list(summarised_functions(MODULE))


def library(folder: Path, num_modules: int = 60) -> Path:
    """Modules with a function of their own and one that is the same in all."""
    folder.mkdir()
    for index in range(num_modules):
        own = f'def area{index}(x):\n    """Compute area number {index}."""\n    return x * {index}\n'
        same = 'def same(x):\n    """Stand in every module."""\n    return x\n'
        (folder / f"module{index}.py").write_text(own + same)
    return folder


def test_modules_are_in_the_split_of_the_corpus_and_nothing_is_in_two(tmp_path: Path) -> None:
    """A function that stands in many modules is kept once, to train on."""
    root = library(tmp_path / "library")
    folder, words = library_docstrings(tmp_path / "cache", root)
    corpus = standard_library(root)
    rows = {
        s: [json.loads(line) for line in (folder / f"{s}.jsonl").read_text().splitlines()] for s in SPLITS
    }

    for split in SPLITS:
        own = [row for row in rows[split] if row["name"].split(":")[1] != "same"]
        assert len(own) == len(corpus.split(split))
        assert all(any(row["summary"] in text for text in corpus.split(split)) for row in own)
    assert [sum(row["summary"] == "Stand in every module." for row in rows[s]) for s in SPLITS] == [1, 0, 0]
    assert corpus.digest[:16] in words
    assert "Python 3." in words


def test_the_functions_are_kept(tmp_path: Path) -> None:
    """A second call reads the same files; a lost one is made again."""
    root = library(tmp_path / "library")
    folder, _ = library_docstrings(tmp_path / "cache", root)
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    library_docstrings(tmp_path / "cache", root)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == times

    (folder / "test.jsonl").unlink()
    library_docstrings(tmp_path / "cache", root)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents


@pytest.mark.wide
def test_the_real_library_has_thousands_of_functions(tmp_path: Path) -> None:
    """Each parses, has no docstring left, and its summary is one line of three words or more."""
    files = split_files(DOCSTRINGS, "standard_library", tmp_path)
    rows = {split: load_rows(DOCSTRINGS, files.of(split)).rows for split in SPLITS}
    sources = {s: {row.prompt[slice(*row.context)] for row in rows[s]} for s in SPLITS}

    assert 2000 < len(rows["train"]) < 8000
    assert all(200 < len(rows[split]) < 1500 for split in ("val", "test"))
    assert not sources["train"] & (sources["val"] | sources["test"])
    assert not {row.origin for row in rows["train"]} & {row.origin for row in rows["test"]}
    for row in rows["test"]:
        (function,) = ast.parse(row.prompt[slice(*row.context)]).body
        assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        assert row.target not in (ast.get_docstring(function) or "")
        assert "\n" not in row.target
        assert len(row.target.split()) >= 3
