"""Atomic writes, of which a reader sees the old content or the new, and errors that name the file.

Every result file of the package is written here, except CSV files, which grow row by row.
"""

import io
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "json_text",
    "naming",
    "plain",
    "unused_path",
    "write_json",
    "write_png",
    "write_unused",
    "write_whole",
]


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write or replace a file atomically; its folder is created if needed.

    Several processes may write the same file: the last one wins. Where writing fails, as on a full disk,
    the old file stays. A new file has the permissions that the user's umask gives, a replaced one keeps its
    own; a link stays a link.

    Args:
        path: The file.
        content: All of it; text is written as UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # /dev/stdout, or a pipe: nothing to replace
        target.write_bytes(_encoded(content))
        return
    with _beside(target, content) as part:
        if target.exists():
            with suppress(OSError):  # a file system without permissions
                part.chmod(target.stat().st_mode & 0o7777)
        os.replace(part, target)


def write_unused(path: Path, content: str | bytes) -> Path:
    """Write a new file: several processes that write the same name get `name`, `name_1`, ...

    Returns:
        The file that was written.

    Raises:
        OSError: It cannot be written.
    """
    with _beside(path, content) as part:
        return next(candidate for candidate in _numbered(path) if _took(part, candidate))


def write_png(path: str | Path, image: "Image") -> None:
    """Write an image as PNG."""
    drawn = io.BytesIO()
    image.save(drawn, "PNG")
    write_whole(path, drawn.getvalue())


def write_json(path: str | Path, content: Mapping[str, object]) -> None:
    """Write values as JSON; `plain` converts what JSON lacks."""
    write_whole(path, json_text(content))


def json_text(content: Mapping[str, object]) -> str:
    """Values as strict JSON, with a line end."""
    return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def unused_path(path: Path) -> Path:
    """The path if it does not exist; else the same with `_1`, `_2`, ... at the end of its stem."""
    return next(candidate for candidate in _numbered(path) if not candidate.exists())


def plain(value: object) -> object:
    """A value for JSON: NaN and infinity become null, paths and other objects their text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    yield from (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in count(1))


def _encoded(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


@contextmanager
def _beside(path: Path, content: str | bytes) -> Iterator[Path]:
    """A temporary file in the same folder with the whole content, removed afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{secrets.token_hex(8)}.part")  # not tempfile: its files ignore the umask
    try:
        part.write_bytes(_encoded(content))
        yield part
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, so nothing was written", str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _took(part: Path, path: Path) -> bool:
    """Give the file its name, unless another file has it."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: reserve the name first
        try:
            path.open("x").close()
        except FileExistsError:
            return False
        os.replace(part, path)
    return True


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Raise what goes wrong with the content of a file as one error that names the file.

    Args:
        path: The file.
        what: What it should be.

    Raises:
        ValueError: It is something else, or damaged.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not {what}, or it is damaged. {said}") from error
