"""Finds the files of a task by split: in a folder, an archive, the fixtures, or the network.

Downloaded and unpacked files are kept in the cache folder.
"""

import hashlib
import http.client
import lzma
import os
import posixpath
import secrets
import shutil
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from lighter_freezers._extras import require
from lighter_freezers._log import log
from lighter_freezers.experiments.data.cache import cache_folder, cannot_keep, keep
from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.prompts import PromptedTask
from lighter_freezers.experiments.data.rows import OF_THE_HUB

__all__ = [
    "FIXTURES",
    "SplitFiles",
    "default_source",
    "fetched",
    "files_by_split",
    "hub_files",
    "split_files",
]

FIXTURES = Path(__file__).parent / "fixtures"
ARCHIVES = (".tar.bz2", ".tar.gz", ".tar.xz", ".tgz", ".tar", ".zip")
TIMEOUT = 60.0  # of a download, in seconds
DAMAGE = (  # what the readers of archives raise
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error),
    RuntimeError,  # encrypted, or a compression that Python lacks
    ValueError,  # a name that no file can have
)


@dataclass(frozen=True)
class SplitFiles:
    """The files of each split.

    Args:
        train: Files to train on; like the others empty if there are none.
        val: Files to validate on.
        test: Files to test on.
        source: Their origin, for a log line.
    """

    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    source: str

    def of(self, split: str) -> tuple[Path, ...]:
        """The files of `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def default_source(task: PromptedTask) -> str:
    """The default source of a task: the standard library, or the fixtures in this package.

    Raises:
        ValueError: It has neither.
    """
    if task.on_this_machine is not None:
        return "standard_library"
    if not (FIXTURES / task.name).is_dir():
        others = "`hub`, a folder" if task.hub else "A folder"
        raise ValueError(f"{task.name} needs `source:`: {others} or an archive; or give `train_file:`.")
    return "fixture"


def split_files(task: PromptedTask, source: str, cache_dir: Path | None = None) -> SplitFiles:
    """Find the files of a task; download or create them if needed.

    Args:
        task: Has the patterns of their names.
        source: `fixture`, `standard_library` (for the docstrings), `hub`, or `hub:` with a URL or what
            `hub_files` takes; or the path of a folder or of an archive.
        cache_dir: The cache folder for downloads and created files. None means that of this package.

    Raises:
        ValueError: There is no such source, or it has no file for any split.
        RuntimeError: Files cannot be downloaded or created.
    """
    if task.on_this_machine is not None and source == "standard_library":
        folder, words = task.on_this_machine(cache_dir)
    elif source == "fixture" and (FIXTURES / task.name).is_dir():
        folder, words = FIXTURES / task.name, f"fixtures of {task.name}, for trying out only"
    elif source == "hub" or source.startswith("hub:"):
        asked, words = source.partition(":")[2], f"{task.name} from {source}"
        places = (asked,) if asked else _on_the_hub(task)
        if not places[0].startswith("https://"):
            return _chosen(task, hub_files(task, places[0]), source, words)
        folder = _fetched_folder(task, places, cache_dir)
    else:
        folder, words = _own_folder(task, source), source
    place, kind = folder, "a folder"
    if _is_archive(folder):
        folder, kind = _unpacked(folder, cache_dir), "an archive"
    paths = (path for path in folder.rglob("*") if path.name[:2] != "._")  # of macOS
    files = (path for path in paths if path.is_file() or not path.exists())  # a dead link is named below
    known = {path.relative_to(folder).as_posix(): (path,) for path in files}
    chosen = _chosen(task, known, source, words)
    for file in (*chosen.train, *chosen.val, *chosen.test):
        if not file.exists():
            raise ValueError(
                f"{place} cannot be read as {kind}: {file.name} is a link to nothing. Fetch it again, with "
                "the file that it stands for."
            )
    return chosen


def _chosen(task: PromptedTask, known: Mapping[str, Sequence[Path]], where: str, words: str) -> SplitFiles:
    """The files of each split, given those of each name."""
    found = files_by_split(task, known)
    if not any(found.values()):
        examples = ", ".join(task.patterns[split][0] for split in SPLITS)
        raise ValueError(
            f"{where} has no files for {task.name}: expected names such as {examples} with a suffix "
            f"among {', '.join(task.suffixes)}, got {', '.join(sorted(known)[:4]) or 'none'}. Name them so, "
            "or give train_file, val_file and test_file."
        )
    paths = {split: tuple(path for name in names for path in known[name]) for split, names in found.items()}
    return SplitFiles(paths["train"], paths["val"], paths["test"], words)


def files_by_split(task: PromptedTask, names: Iterable[str]) -> dict[str, list[str]]:
    """The files of each split, by the patterns of the task.

    A file whose name matches no pattern is assigned by the nearest folder whose name does, as in the hub's
    `default/train/0000.parquet`.

    Args:
        task: Has the patterns.
        names: Paths below one folder, with "/".
    """
    paths = (path for path in map(PurePosixPath, names) if path.suffix in task.suffixes)
    known = [path for path in paths if not fnmatch(path.name, "*.tables.*")]
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        candidates = [
            [name for name in known if name.suffix == suffix and fnmatch(_telling_name(task, name), pattern)]
            for pattern in task.patterns[split]
            for suffix in task.suffixes
        ]
        found[split] = sorted(str(name) for name in next(filter(None, candidates), []))
    return found


def _telling_name(task: PromptedTask, name: PurePosixPath) -> str:
    """The file's own name, or that of the nearest folder above it that stands for a split."""
    patterns = [pattern for split in SPLITS for pattern in task.patterns[split]]
    above = [f"{folder.name}{name.suffix}" for folder in name.parents if folder.name]
    telling = (each for each in (name.name, *above) if any(fnmatch(each, pattern) for pattern in patterns))
    return next(telling, name.name)


def _own_folder(task: PromptedTask, source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and _is_archive(path)):
        return path
    if path.is_file():
        raise ValueError(
            f"source={source!r} is one file. Give it as train_file, with val_file and test_file if there "
            "are, or give a folder or an archive with a file for each split."
        )
    fetched = "'hub' or 'hub:OWNER/NAME'" if task.hub else "'hub:OWNER/NAME'"
    raise ValueError(
        f"source={source!r} is neither a folder nor an archive (working directory: {Path.cwd()}). "
        f"{task.name} knows '{default_source(task)}', {fetched}, and the path of a folder or an archive."
    )


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES) and path.is_file()


def _unpacked(archive: Path, cache_dir: Path | None) -> Path:
    """Unpack an archive into the cache, unless it is there; returns the folder."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder = cache_folder(cache_dir) / f"unpacked-{digest[:16]}"
    if folder.is_dir():
        return folder
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError(
            f"{archive} can be unpacked safely by Python 3.10.12, 3.11.4 and later, and this one is older. "
            "Update it, or unpack the archive and give its folder, `source: PATH`."
        )
    part = folder.with_name(f".{secrets.token_hex(8)}.part")
    try:
        _unpack(archive, part)
        with suppress(OSError):  # another process was faster
            os.rename(part, folder)
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the archive
            raise cannot_keep(f"What is in {archive}", folder.parent, error) from error
        reason = str(error).split("\n")[0].rstrip(":")
        raise ValueError(f"{archive} cannot be read as an archive: {reason}. Fetch it again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive; one with a member outside of the folder is refused."""
    if archive.suffix.lower() != ".zip":
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter=_safe)
        return
    with zipfile.ZipFile(archive) as zipped:  # its extractall would move such a member into the folder
        for name in zipped.namelist():
            if ".." in PurePosixPath(name).parts:
                raise zipfile.BadZipFile(f"{name} is outside the destination")
        zipped.extractall(folder)


def _safe(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """A member that stays in the folder; another name of a file that is not there becomes a dead link."""
    safe = tarfile.data_filter(member, folder)
    if safe is None or not safe.islnk() or os.path.exists(os.path.join(folder, safe.linkname)):
        return safe
    dead = safe.replace(linkname=posixpath.relpath(safe.linkname, posixpath.dirname(safe.name) or "."))
    dead.type = tarfile.SYMTYPE
    return tarfile.data_filter(dead, folder)  # it may stand behind a link to another folder


def _on_the_hub(task: PromptedTask) -> tuple[str, ...]:
    if not task.hub:
        raise ValueError(f"{task.name} has no data on the hub. Leave `source:` out, or give a folder.")
    return task.hub


def _fetched_folder(task: PromptedTask, addresses: Sequence[str], cache_dir: Path | None) -> Path:
    """The folder with the files at these URLs, or the archive, downloaded unless it is there."""
    digest = hashlib.sha256("\n".join(addresses).encode()).hexdigest()
    folder = cache_folder(cache_dir) / f"fetched-{task.name}-{digest[:16]}"
    paths = [PurePosixPath(urlsplit(address).path) for address in addresses]
    files = [
        fetched(address, folder / path.parent.name, task.name)  # files of equal names stay apart
        for address, path in zip(addresses, paths, strict=True)
    ]
    return files[0] if len(files) == 1 and _is_archive(files[0]) else folder


def fetched(address: str, folder: Path, task_name: str) -> Path:
    """Download a file from a URL into this folder, unless it is there already.

    Raises:
        RuntimeError: It cannot be downloaded.
    """
    file = folder / PurePosixPath(urlsplit(address).path).name
    if file.is_file():
        return file
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(task_name, address, error) from error
    keep(file, content)
    log.info("Fetched %s (%s bytes) to %s.", address, f"{len(content):,}", file)
    return file


def hub_files(task: PromptedTask, dataset: str) -> dict[str, list[Path]]:
    """The splits of a data set on the hub, as files in the cache of `datasets`, `$HF_HOME`.

    Args:
        task: For the error.
        dataset: `OWNER/NAME`, with `/CONFIG` if it has several configs and `@REVISION` for another than the
            newest; or a folder in the hub's layout.

    Raises:
        RuntimeError: It cannot be fetched, or read.
    """
    require(f"The hub's data set {dataset}", "datasets")
    import datasets

    folder = Path(dataset).expanduser()
    name, _, revision = (str(folder), "", "") if folder.is_dir() else dataset.partition("@")
    parts = [name] if folder.is_dir() else name.split("/")
    has_bars = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            "/".join(parts[:2]), *parts[2:], revision=revision or None, keep_in_memory=False
        )
    except Exception as error:  # by version: OSError, ValueError, or one of the hub's HTTP client
        raise _unreachable(task.name, f"the data set {name} of the hub", error) from error
    finally:
        if has_bars:
            datasets.enable_progress_bars()
    return {
        f"{split}{OF_THE_HUB}": [Path(file["filename"]) for file in rows.cache_files]
        for split, rows in loaded.items()
    }


def _unreachable(task_name: str, what: str, error: Exception) -> RuntimeError:
    reason = str(error).strip().split("\n")[0]
    return RuntimeError(
        f"{task_name}: {what} cannot be fetched ({type(error).__name__}: {reason}). Without a network give "
        "files of your own, `train_file:`, `val_file:` and `test_file:`, or a folder or archive that was "
        "fetched elsewhere, `source: PATH`; or try the run on the small fixtures, `source: fixture`."
    )
