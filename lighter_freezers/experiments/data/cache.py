"""The cache folder for tokenizers, encoded texts and labels, and atomic writes to it."""

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lighter_freezers._log import log
from lighter_freezers.reports.whole_files import write_whole

__all__ = ["Arrays", "Ids", "cache_folder", "cannot_keep", "encoded_once", "keep", "kept_arrays"]

Arrays: TypeAlias = Mapping[str, npt.NDArray[np.generic]]
Ids: TypeAlias = npt.NDArray[np.int32]
IDS_VERSION = 1  # of the files of ids: raise it when `_joined` changes, so that older ones are not read


def cache_folder(cache_dir: Path | None) -> Path:
    """The folder given; without one `$XDG_CACHE_HOME/lighter_freezers`, or `~/.cache/lighter_freezers`."""
    if cache_dir is not None:
        return cache_dir
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "lighter_freezers"


def keep(file: Path, content: bytes) -> None:
    """Write a file atomically, so that no reader sees half of it.

    Raises:
        RuntimeError: The folder is not writable.
    """
    try:
        write_whole(file, content)
    except OSError as error:
        raise cannot_keep(file.name, file.parent, error) from error


def cannot_keep(what: str, folder: Path, error: OSError) -> RuntimeError:
    """The error for what cannot be written to a cache folder."""
    return RuntimeError(
        f"{what} cannot be kept in {folder}: {error}. Give a folder that can be written: `cache_dir:`, or "
        "the environment variable XDG_CACHE_HOME."
    )


def kept_arrays(file: Path, build: Callable[[], Arrays], names: Sequence[str] = ()) -> Arrays:
    """Arrays by name: from a file of the cache, or built and kept in it.

    Several processes may build the same file at once. A cache that cannot be written costs one warning, and
    the arrays are built at each start.

    Args:
        file: An `.npz` file; its name must say all that the arrays depend on.
        build: Makes them.
        names: Of the arrays; a file without one of them is damaged.
    """
    try:
        return _read(file, names)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # numpy raises many types, whatever is wrong with the file
        log.warning("%s is damaged and is made again: %s.", file, error)
    arrays, content = build(), io.BytesIO()
    np.savez(content, **arrays)
    try:
        write_whole(file, content.getvalue())
    except OSError as error:
        _say_not_kept(file.parent, error.strerror)
    else:
        _say_kept(file.parent)
    return arrays


def _read(file: Path, names: Sequence[str]) -> Arrays:
    with file.open("rb") as opened:  # and closed: no memory map stays open
        arrays = dict(np.load(opened, allow_pickle=False))
    if missing := set(names) - set(arrays):
        raise ValueError(f"it lacks {missing.pop()}")
    return arrays


@cache  # one line for a folder
def _say_kept(folder: Path) -> None:
    log.info("What is encoded now is kept in %s, and read from there at the next start.", folder)


@cache
def _say_not_kept(folder: Path, reason: str) -> None:
    log.warning(
        "Encoded text cannot be kept in %s (%s), so each start encodes it again. Give a folder that can be "
        "written: `cache_dir:`, or the environment variable XDG_CACHE_HOME.",
        folder,
        reason,
    )


def encoded_once(
    texts: Sequence[str], fingerprint: str, encode: Callable[[Sequence[str]], list[list[int]]], folder: Path
) -> list[Ids]:
    """The token ids of each text: encoded now, or read from the folder, where they are kept.

    Args:
        texts: The texts.
        fingerprint: A digest of all else that the ids depend on: the tokenizer.
        encode: Encodes texts.
        folder: The cache folder.
    """
    sha = hashlib.sha256(fingerprint.encode())
    for text in texts:
        sha.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    file = folder / f"ids-{sha.hexdigest()[:32]}-v{IDS_VERSION}.npz"
    kept = kept_arrays(file, lambda: _joined(encode(texts)), ("ids", "ends"))
    ids, ends = kept["ids"].astype(np.int32, copy=False), kept["ends"].tolist()
    return [ids[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _joined(rows: Sequence[Sequence[int]]) -> Arrays:
    """All rows in one array, and where each ends."""
    return {
        "ids": np.fromiter(chain.from_iterable(rows), np.int32),
        "ends": np.cumsum([len(row) for row in rows], dtype=np.int64),
    }
