"""The built-in corpus: the source of the standard library of the running Python.

It is read from the Python installation, so nothing is downloaded or redistributed. It differs between Python
versions, so a run logs the version and a digest.
"""

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lighter_freezers.experiments.data.corpus import SPLITS, Corpus

__all__ = ["library_modules", "standard_library"]

PACKAGES = (
    "asyncio",
    "collections",
    "concurrent/futures",
    "ctypes",
    "email",
    "html",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "re",
    "sqlite3",
    "tomllib",
    "unittest",
    "urllib",
    "wsgiref",
    "xml/dom",
    "xml/etree",
    "zoneinfo",
)
NUM_SHARES = 10  # a tenth of the modules for test, a tenth for validation, the rest for training


def standard_library(root: Path | None = None) -> Corpus:
    """Read the top-level modules of the standard library and those of some packages, ASCII ones only.

    A hash of its name assigns a module to a split, so no module is in two splits, and the split is the same
    in every Python version.

    Args:
        root: Folder of the standard library. None for that of the running Python.

    Raises:
        RuntimeError: It has no source files for all three splits, for example only .pyc files.
    """
    modules = library_modules(root)
    train, val, test = (tuple(modules[split].values()) for split in SPLITS)
    return Corpus(train, val, test, source=f"standard library of Python {platform.python_version()}")


def library_modules(root: Path | None = None) -> dict[str, dict[str, str]]:
    """The modules that `standard_library` reads: for each split, sources by name such as `asyncio/tasks`.

    Args:
        root: Folder of the standard library. None for that of the running Python.

    Raises:
        RuntimeError: It has no source files for all three splits.
    """
    folder = Path(sysconfig.get_path("stdlib")) if root is None else root
    modules: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for name, text in sorted(_modules(folder)):
        modules[_split_of(name)][name] = text
    if not all(modules.values()):
        raise RuntimeError(_no_source(folder, sum(map(len, modules.values()))))
    return modules


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    for package in ("", *PACKAGES):
        for path in (folder / package).glob("*.py"):
            content = path.read_bytes()
            if content.isascii() and content.strip():
                yield path.relative_to(folder).with_suffix("").as_posix(), content.decode("ascii")


def _split_of(name: str) -> str:
    share = int(hashlib.sha256(name.encode()).hexdigest(), 16) % NUM_SHARES
    return {0: "test", 1: "val"}.get(share, "train")


def _no_source(folder: Path, num_modules: int) -> str:
    return (
        f"The default text is the source of Python's standard library, but {folder} holds {num_modules} "
        "usable .py files: too few for training, validation and test (some installations ship only .pyc). "
        "Give a text of your own instead: `text:` a .txt file or a folder of .txt files, or files of rows, "
        "`train_file:` and `val_file:`."
    )
