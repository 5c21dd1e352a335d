"""A text of the user's own: how it is split, and what is said about one that cannot be used."""

from pathlib import Path

import pytest

from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.text_files import text_files
from tests.texts import write_texts


def test_a_file_is_cut_by_position(tmp_path: Path) -> None:
    """80 % to train, 10 % to validate, 10 % to test, and nothing is lost or changed."""
    file = tmp_path / "one.txt"
    file.write_bytes("zeile\r\né".encode() * 100)
    corpus = text_files(file)

    assert [len(corpus.split(name)[0]) for name in SPLITS] == [640, 80, 80]
    assert corpus.train[0] + corpus.val[0] + corpus.test[0] == "zeile\r\né" * 100
    assert sum(map(corpus.num_bytes, SPLITS)) == file.stat().st_size


def test_many_files_are_split_by_file(tmp_path: Path) -> None:
    """From ten on each file is whole and on one side only."""
    corpus = text_files(write_texts(tmp_path, num_files=20))
    texts = {path.read_bytes().decode() for path in tmp_path.rglob("*.txt")}
    documents = [document for name in SPLITS for document in corpus.split(name)]

    assert [len(corpus.split(name)) for name in SPLITS] == [16, 2, 2]
    assert len(documents) == 20
    assert set(documents) == texts


def test_a_few_files_are_each_cut(tmp_path: Path) -> None:
    """All are in all splits."""
    corpus = text_files(write_texts(tmp_path, num_files=3))

    assert [len(corpus.split(name)) for name in SPLITS] == [3, 3, 3]
    assert "3 text files" in corpus.source


def test_the_split_does_not_depend_on_the_place(tmp_path: Path) -> None:
    """The same files elsewhere are the same corpus, and another text is another one."""
    here, there = (text_files(write_texts(tmp_path / name)) for name in ("here", "there"))
    other = text_files(write_texts(tmp_path / "other", num_words=301))

    assert here.train == there.train
    assert here.digest == there.digest
    assert here.digest != other.digest


def test_the_digest_knows_the_split(tmp_path: Path) -> None:
    """The same characters, cut otherwise, are another corpus: another tokenizer."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder, parts in ((whole, ["a" * 100]), (halves, ["a" * 50, "a" * 50])):
        folder.mkdir()
        for index, part in enumerate(parts):
            (folder / f"{index}.txt").write_text(part)

    assert text_files(whole).digest != text_files(halves).digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "does not exist"),
        ("notes.md", b"text", r"not a \.txt file"),
        ("empty.txt", b"", r"has 0 characters in 1 \.txt files: too few"),
        ("short.txt", b"abc", "too few to split"),
        ("latin.txt", b"caf\xe9 noir", r"latin\.txt is not UTF-8: byte 3 is 0xe9"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    """The error names the path, what is wrong with it and what to do."""
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(ValueError, match=message) as raised:
        text_files(tmp_path / name)
    assert name in str(raised.value)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    """Other files do not count."""
    (tmp_path / "readme.md").write_text("text")

    with pytest.raises(ValueError, match=r"has no \.txt file in it or below it"):
        text_files(tmp_path)
