"""The cache folder, and atomic writes to it."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers.experiments.data.cache import cache_folder, keep


def test_the_folder_is_the_one_given_or_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is asked first, then the home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "lighter_freezers"
    assert cache_folder(Path("here")) == Path("here")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "lighter_freezers"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """Folders are made, and nothing else is left there."""
    for content in (b"first", b"second"):
        keep(tmp_path / "a" / "b" / "file", content)

        assert (tmp_path / "a" / "b" / "file").read_bytes() == content
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """With what to give instead."""
    (tmp_path / "way").write_text("in the")

    with pytest.raises(RuntimeError, match=r"classes cannot be kept in .*way.*`cache_dir:`"):
        keep(tmp_path / "way" / "classes", b"")


def test_cached_files_keep_the_umask_of_the_user(tmp_path: Path) -> None:
    """A group that shares the cache can read new files and replaced ones, and nobody runs them."""
    before = os.umask(0o027)
    try:
        for content in (b"first", b"second"):
            keep(tmp_path / "shared" / "classes", content)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "shared" / "classes").stat().st_mode) == 0o640


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """On a full disk the old file stays, and no part of the new one, which would be read as a cached file."""
    keep(tmp_path / "classes", b"old")
    resource: Any = pytest.importorskip("resource")  # Windows has none
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # a write fails beyond it, after a part
    try:
        for name in ("classes", "others"):
            with pytest.raises(RuntimeError, match=rf"{name} cannot be kept in .*`cache_dir:`"):
                keep(tmp_path / name, b"x" * 9000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"classes": b"old"}
