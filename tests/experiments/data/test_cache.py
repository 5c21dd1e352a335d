"""The cache folder, and atomic writes to it."""

from pathlib import Path

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
