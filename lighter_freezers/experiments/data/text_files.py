"""A corpus from the user's text: one .txt file or a folder of them, with a reproducible split."""

import hashlib
from pathlib import Path

from lighter_freezers.experiments.data.corpus import Corpus

__all__ = ["text_files"]

MIN_FILES = 10  # from this number on the split is by file; with fewer each file is cut
HELP = "Give a UTF-8 .txt file, or a folder with .txt files in it or below it."


def text_files(path: Path) -> Corpus:
    """Read a .txt file, or all .txt files below a folder.

    From 10 files on a tenth of the files is for validation and a tenth for test, chosen by a hash of their
    names. With fewer, each file is cut: the first 80 % of its characters for training, 10 % for validation,
    10 % for test.

    Args:
        path: The file or the folder.

    Raises:
        ValueError: It does not exist, there is no .txt file or no text, or a file is not UTF-8.
    """
    files = _find(path)
    texts = {name: text for name, file in files.items() if (text := _read(file))}
    splits = _by_file(texts) if len(texts) >= MIN_FILES else _by_position(list(texts.values()))
    if not all(splits):
        raise ValueError(
            f"{path} has {sum(map(len, texts.values()))} characters in {len(files)} .txt files: too few to "
            "split into training, validation and test. Give a longer text."
        )
    return Corpus(*splits, source=f"{len(files)} text file{'s' * (len(files) > 1)} of {path}")


def _find(path: Path) -> dict[str, Path]:
    """The files by name, in alphabetical order on every system."""
    if not path.exists():
        raise ValueError(f"{path} does not exist (working directory: {Path.cwd()}). {HELP}")
    if path.is_file():
        if path.suffix != ".txt":
            raise ValueError(f"{path} is not a .txt file. {HELP}")
        return {path.name: path}
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*.txt") if file.is_file()}
    if not files:
        raise ValueError(f"The folder {path} has no .txt file in it or below it. {HELP}")
    return dict(sorted(files.items()))


def _read(file: Path) -> str:
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}. "
            "Convert it to UTF-8, or take it out of the folder."
        ) from error


Splits = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


def _by_file(texts: dict[str, str]) -> Splits:
    shuffled = sorted(texts, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    share = len(texts) // 10
    test, val = set(shuffled[:share]), set(shuffled[share : 2 * share])
    return (
        tuple(text for name, text in texts.items() if name not in test | val),
        tuple(texts[name] for name in texts if name in val),
        tuple(texts[name] for name in texts if name in test),
    )


def _by_position(texts: list[str]) -> Splits:
    cuts = [(text, len(text) * 8 // 10, len(text) * 9 // 10) for text in texts]
    return (
        tuple(text[:val] for text, val, _ in cuts if text[:val]),
        tuple(text[val:test] for text, val, test in cuts if text[val:test]),
        tuple(text[test:] for text, _, test in cuts if text[test:]),
    )
