"""Finds the files of a task by split: in a folder, an archive, the fixtures, or the network.

Downloaded and unpacked files are kept in the cache folder.
"""

import hashlib
import http.client
import tarfile
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from lighter_freezers._extras import require
from lighter_freezers._log import log
from lighter_freezers.experiments.data.cache import cache_folder, keep
from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.prompts import PromptedTask
from lighter_freezers.experiments.tasks.docstrings import DOCSTRINGS, library_docstrings

__all__ = [
    "FIXTURES",
    "SplitFiles",
    "default_source",
    "fetched",
    "files_by_split",
    "hub_folder",
    "split_files",
]

FIXTURES = Path(__file__).parent / "fixtures"
ARCHIVES = (".tar.bz2", ".tar.gz", ".tgz", ".tar")
WHOLE = ".whole"  # marks a completely unpacked archive


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
    if task is DOCSTRINGS:
        return "standard_library"
    if not (FIXTURES / task.name).is_dir():
        others = "`hub`, a folder" if task.hub else "A folder"
        raise ValueError(f"{task.name} needs `source:`: {others} or a tar archive; or give `train_file:`.")
    return "fixture"


def split_files(task: PromptedTask, source: str, cache_dir: Path | None = None) -> SplitFiles:
    """Find the files of a task; download or create them if needed.

    Args:
        task: Has the patterns of their names.
        source: `fixture`, `standard_library` (for the docstrings), `hub`, `hub:OWNER/NAME` or
            `hub:OWNER/NAME@REVISION`; or the path of a folder or of a tar archive.
        cache_dir: The cache folder for downloads and created files. None means that of this package.

    Raises:
        ValueError: There is no such source, or it has no file for any split.
        RuntimeError: Files cannot be downloaded or created.
    """
    if source == "standard_library" and task is DOCSTRINGS:
        folder, words = library_docstrings(cache_dir)
    elif source == "fixture" and (FIXTURES / task.name).is_dir():
        folder, words = FIXTURES / task.name, f"fixtures of {task.name}, for trying out only"
    elif source == "hub" or source.startswith("hub:"):
        folder = hub_folder(task, source.partition(":")[2], cache_dir)
        words = f"{task.name} from {source}"
    else:
        folder, words = _own_folder(task, source, cache_dir), source
    if _is_archive(folder):
        folder = _unpacked(task, folder, cache_dir)
    found = files_by_split(task, [path.relative_to(folder).as_posix() for path in _files(folder)])
    if not any(found.values()):
        raise ValueError(
            f"{source} has no files for {task.name}: expected names such as {_examples(task)} with a suffix "
            f"among {', '.join(task.suffixes)} in {folder}. Name them so, or give train_file, val_file and "
            "test_file."
        )
    paths = {split: tuple(folder / name for name in names) for split, names in found.items()}
    return SplitFiles(paths["train"], paths["val"], paths["test"], words)


def files_by_split(task: PromptedTask, names: Iterable[str]) -> dict[str, list[str]]:
    """The files of each split, by the patterns of the task.

    A file whose name matches no pattern is assigned by the nearest folder whose name does, as in the hub's
    `default/train/0000.parquet`.

    Args:
        task: Has the patterns.
        names: Paths below one folder, with "/".
    """
    known = [name for name in map(PurePosixPath, names) if _is_rows(task, name)]
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        candidates = [
            [name for name in known if name.suffix == suffix and fnmatch(_telling_name(task, name), pattern)]
            for pattern in task.patterns[split]
            for suffix in task.suffixes
        ]
        found[split] = sorted(str(name) for name in next(filter(None, candidates), []))
    return found


def _is_rows(task: PromptedTask, name: PurePosixPath) -> bool:
    return name.suffix in task.suffixes and not fnmatch(name.name, "*.tables.*")


def _telling_name(task: PromptedTask, name: PurePosixPath) -> str:
    """The file's own name, or that of the nearest folder above it that stands for a split."""
    patterns = [pattern for split in SPLITS for pattern in task.patterns[split]]
    above = [f"{folder.name}{name.suffix}" for folder in name.parents if folder.name]
    telling = (each for each in (name.name, *above) if any(fnmatch(each, pattern) for pattern in patterns))
    return next(telling, name.name)


def _files(folder: Path) -> Sequence[Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if path.name[:2] != "._"]  # what macOS writes beside each file


def _own_folder(task: PromptedTask, source: str, cache_dir: Path | None) -> Path:
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and _is_archive(path)):
        return path
    if path.is_file():
        raise ValueError(
            f"source={source!r} is one file. Give it as train_file, with val_file and test_file if there "
            "are, or give a folder or a tar archive with a file for each split."
        )
    fetched = "'hub' or 'hub:OWNER/NAME'" if task.hub else "'hub:OWNER/NAME'"
    raise ValueError(
        f"source={source!r} is neither a folder nor a tar archive (working directory: {Path.cwd()}). "
        f"{task.name} knows '{default_source(task)}', {fetched}, and the path of a folder or a tar archive."
    )


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES) and path.is_file()


def _unpacked(task: PromptedTask, archive: Path, cache_dir: Path | None) -> Path:
    """Unpack the files of rows in an archive into the cache, unless they are there; returns the folder."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder = cache_folder(cache_dir) / f"archive-{digest[:16]}"
    if (folder / WHOLE).exists():
        return folder
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                is_rows = not member.isdir() and Path(member.name).suffix in task.suffixes
                content = opened.extractfile(member) if is_rows else None  # a link is the file it names
                if content is not None:
                    keep(folder / _below(member.name), content.read())
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:  # KeyError: a link to nothing
        reason = str(error).split("\n")[0].rstrip(":")
        raise ValueError(f"{archive} cannot be read as a tar archive: {reason}. Fetch it again.") from error
    keep(folder / WHOLE, b"")
    return folder


def _below(name: str) -> PurePosixPath:
    """The path of a member below the folder it is unpacked to, whatever it tries, and its alone."""
    path = PurePosixPath(name)
    parts = path.parts[1:] if path.root else path.parts  # the root may be two slashes
    return PurePosixPath(*("__" if part == ".." else part for part in parts))


def _examples(task: PromptedTask) -> str:
    return ", ".join(task.patterns[split][0] for split in SPLITS)


TIMEOUT = 60.0  # timeout in seconds


def hub_folder(task: PromptedTask, dataset: str, cache_dir: Path | None = None) -> Path:
    """The folder or the archive with the files of a task, downloaded unless it is cached.

    Args:
        task: Has the URLs of its files, or the name of its data set on the hub.
        dataset: Another data set on the hub, as `OWNER/NAME` or `OWNER/NAME@REVISION`. Empty for the task's.
        cache_dir: The cache for files from URLs. None means the cache folder of this package. Files from the
            hub go to its own cache, `$HF_HOME`.

    Raises:
        ValueError: The task has no data on the hub.
        RuntimeError: They cannot be downloaded.
    """
    if dataset:
        return _hub_snapshot(task, dataset)
    if not task.hub:
        raise ValueError(f"{task.name} has no data on the hub. Leave `source:` out, or give a folder.")
    if not task.hub[0].startswith("https://"):
        return _hub_snapshot(task, task.hub[0])
    folder = cache_folder(cache_dir) / f"fetched-{task.name}"
    files = [fetched(address, folder, task.name) for address in task.hub]
    return files[0] if len(files) == 1 else folder


def fetched(address: str, folder: Path, task_name: str) -> Path:
    """Download a file from a URL into this folder, unless it is there already.

    Raises:
        RuntimeError: It cannot be downloaded.
    """
    file = folder / PurePosixPath(address).name
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


def _hub_snapshot(task: PromptedTask, dataset: str) -> Path:
    require(f"The hub's data set {dataset}", "huggingface_hub")
    from huggingface_hub import snapshot_download

    name, _, revision = dataset.partition("@")
    stems = {pattern.removesuffix(".*").strip("*") for split in SPLITS for pattern in task.patterns[split]}
    patterns = [f"*{stem}*{suffix}" for stem in sorted(stems) for suffix in task.suffixes]
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except Exception as error:  # OSError, or one of the hub's HTTP client, by version
        raise _unreachable(task.name, f"the data set {name} of the hub", error) from error
    return Path(folder)


def _unreachable(task_name: str, what: str, error: Exception) -> RuntimeError:
    reason = str(error).strip().split("\n")[0]
    return RuntimeError(
        f"{task_name}: {what} cannot be fetched ({type(error).__name__}: {reason}). Without a network give "
        "files of your own, `train_file:`, `val_file:` and `test_file:`, or a folder or archive that was "
        "fetched elsewhere, `source: PATH`; or try the run on the small fixtures, `source: fixture`."
    )
