"""Result files are there as a whole or not at all: with many writers, many readers, and on a full disk."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers.reports.csv_rows import StepRows
from lighter_freezers.reports.results_file import write_results
from lighter_freezers.reports.whole_files import unused_path, write_json, write_png, write_unused, write_whole

WRITER = """
import os, sys
from pathlib import Path
from lighter_freezers.reports.results_file import write_results
from lighter_freezers.reports.whole_files import write_whole

def refuse(*_):
    raise PermissionError(1, "Operation not permitted")  # what a file system without hard links says

path, mark = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.read(1)
"""
REPLACE = "for _ in range(100): write_whole(path, mark * 300_000)"
BESIDE = "for _ in range(25): write_results(path, {'mark': mark})"


def writers(path: Path, code: str) -> list[subprocess.Popen[str]]:
    """Four processes that write at once."""
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER + code, str(path), mark],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for mark in "abcd"
    ]
    assert [process.stdout.readline() for process in started if process.stdout] == ["ready\n"] * 4
    for process in started:
        assert process.stdin
        process.stdin.write("!")
        process.stdin.flush()
    return started


def end(started: list[subprocess.Popen[str]]) -> None:
    """None crashed."""
    assert [process.communicate()[1] for process in started] == [""] * len(started)
    assert {process.returncode for process in started} == {0}


def test_a_reader_beside_four_writers_never_sees_a_part(tmp_path: Path) -> None:
    """Each look finds what one of them wrote, from the first letter to the last."""
    file = tmp_path / "summary.json"
    write_whole(file, "start" * 60_000)
    started, seen = writers(file, REPLACE), set()
    while any(process.poll() is None for process in started):
        content = file.read_text()
        seen.add((content[0], len(set(content)), len(content)))
    end(started)

    assert seen - {("s", 4, 300_000)} <= {(mark, 1, 300_000) for mark in "abcd"}
    assert len(seen) > 1
    assert os.listdir(tmp_path) == ["summary.json"]


@pytest.mark.parametrize("before", ["", "os.link = refuse\n"], ids=["links", "no links"])
def test_evaluations_that_end_together_get_a_name_each(tmp_path: Path, before: str) -> None:
    """Also where the file system has no hard links: a number is taken once, and no file is lost."""
    end(writers(tmp_path, before + BESIDE))

    names = ["evaluation_results.json", *(f"evaluation_results_{number}.json" for number in range(1, 100))]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert sorted(json.loads((tmp_path / name).read_text())["mark"] for name in names) == sorted("abcd" * 25)


def _rows(path: Path) -> None:
    StepRows(path, ["step", "x" * 9000]).begin()


WAYS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_whole(path, "x" * 9000),
    "json": lambda path: write_json(path, {"x": "x" * 9000}),
    "results": lambda path: write_results(path.parent, {"x": "x" * 9000}, path.name),
    "unused": lambda path: write_unused(path, "x" * 9000),
    "rows": _rows,
}


@pytest.mark.parametrize("way", WAYS)
def test_on_a_full_disk_the_old_file_stays_and_nothing_else(tmp_path: Path, way: str) -> None:
    """The error names the file; what was written so far is removed."""
    file = tmp_path / "kept.json"
    file.write_text("old")
    resource: Any = pytest.importorskip("resource")  # Windows has none
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # a write fails beyond it, after a part
    try:
        with pytest.raises(OSError, match=r"so nothing was written: .*kept\.json"):
            WAYS[way](file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert os.listdir(tmp_path) == ["kept.json"]
    assert file.read_text() == "old"


def test_permissions_are_those_of_the_umask_or_of_the_file(tmp_path: Path) -> None:
    """A shared cache can be read by the group; what the user had opened or closed stays so."""
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", b"")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o604)
        write_whole(tmp_path / "old", b"new")
    finally:
        os.umask(before)

    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")}
    assert modes == {"new": 0o640, "old": 0o604}


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    """What they lead to gets the content."""
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    for content in ("first", "second"):
        write_whole(tmp_path / "link", content)

        assert (tmp_path / "far" / "file").read_text() == content
    assert (tmp_path / "link").is_symlink()
    write_whole(os.devnull, "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_folders_are_made_and_pictures_are_png(tmp_path: Path) -> None:
    """By every way."""
    from PIL import Image

    write_png(tmp_path / "a" / "b.png", Image.new("RGB", (3, 2)))

    with Image.open(tmp_path / "a" / "b.png") as read:
        assert (read.format, read.size) == ("PNG", (3, 2))
    assert unused_path(tmp_path / "a" / "b.png") == tmp_path / "a" / "b_1.png"
