"""The embedded corpus: what it holds, how it is split, and what happens where there is no source."""

import platform
from pathlib import Path

import pytest

from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.standard_library import standard_library


def write_modules(root: Path, num_modules: int = 60) -> Path:
    """A folder that looks like a standard library."""
    (root / "json").mkdir(parents=True)
    for index in range(num_modules):
        folder = root / "json" if index % 2 else root
        (folder / f"module{index}.py").write_text(f"value = {index}\n")
    return root


def test_the_running_python_has_enough_of_it() -> None:
    """Megabytes of ASCII in three splits, none empty, most of it to train on."""
    corpus = standard_library()
    sizes = [corpus.num_bytes(name) for name in SPLITS]

    assert 3_000_000 < sum(sizes) < 30_000_000
    assert sizes[0] > 0.6 * sum(sizes)
    assert min(sizes) > 100_000
    assert all(document.isascii() for name in SPLITS for document in corpus.split(name))
    assert platform.python_version() in corpus.source


def test_it_is_the_same_text_each_time() -> None:
    """Order and splits do not depend on the file system."""
    first, second = standard_library(), standard_library()

    assert first == second
    assert first.digest == second.digest


def test_each_module_is_in_one_split(tmp_path: Path) -> None:
    """Those of packages too, and nothing is lost."""
    corpus = standard_library(write_modules(tmp_path))
    documents = [document for name in SPLITS for document in corpus.split(name)]

    assert len(documents) == 60
    assert len(set(documents)) == 60


def test_more_modules_leave_the_others_where_they_were(tmp_path: Path) -> None:
    """The split of a module depends on its name only, so another Python splits the same way."""
    few = standard_library(write_modules(tmp_path / "few", 60))
    many = standard_library(write_modules(tmp_path / "many", 90))

    assert all(set(few.split(name)) <= set(many.split(name)) for name in SPLITS)
    assert few.digest != many.digest


def test_other_files_are_left_out(tmp_path: Path) -> None:
    """Modules with other characters than ASCII, empty ones, and what is no source."""
    before = standard_library(write_modules(tmp_path))
    (tmp_path / "umlaut.py").write_text("name = 'ü'\n", encoding="utf-8")
    (tmp_path / "__init__.py").write_text("\n")
    (tmp_path / "compiled.pyc").write_bytes(b"\x00")

    assert standard_library(tmp_path) == before


def test_without_source_the_error_names_the_alternative(tmp_path: Path) -> None:
    """Where only .pyc files ship, a text of one's own helps."""
    (tmp_path / "abc.pyc").write_bytes(b"\x00")

    with pytest.raises(RuntimeError, match=r"holds 0 usable .py files.*`text:` a .txt file or a folder"):
        standard_library(tmp_path)
