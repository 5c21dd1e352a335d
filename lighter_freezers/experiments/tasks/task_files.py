"""Which files hold the rows of a task, by split: of a folder, an archive, the fixtures or the hub."""

import hashlib
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from lighter_freezers.experiments.data.cache import cache_folder, keep
from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.prompts import PromptedTask
from lighter_freezers.experiments.data.rows import SUFFIXES
from lighter_freezers.experiments.tasks.docstrings import DOCSTRINGS, library_docstrings
from lighter_freezers.experiments.tasks.hub_files import hub_folder

__all__ = ["FIXTURES", "SplitFiles", "default_source", "files_by_split", "split_files"]

FIXTURES = Path(__file__).parent / "fixtures"
ARCHIVES = (".tar.bz2", ".tar.gz", ".tgz", ".tar")
WHOLE = ".whole"  # stands in a folder when all of an archive is there


@dataclass(frozen=True)
class SplitFiles:
    """The files of each split.

    Args:
        train: To learn from; empty if there are none, and the same for the others.
        val: To validate on.
        test: To test on.
        source: Where they are from, in words for a log line.
    """

    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    source: str

    def of(self, split: str) -> tuple[Path, ...]:
        """The files of `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def default_source(task: PromptedTask) -> str:
    """What a task takes when nobody says: the standard library, or the fixtures in this package."""
    return "standard_library" if task is DOCSTRINGS else "fixture"


def split_files(task: PromptedTask, source: str, cache_dir: Path | None = None) -> SplitFiles:
    """Find the files of a task, and fetch or make them if need be.

    Args:
        task: Knows what they are called.
        source: `fixture`, `standard_library` (for the docstrings), `hub`, `hub:OWNER/NAME` or
            `hub:OWNER/NAME@REVISION`; or the path of a folder or of a tar archive.
        cache_dir: Where to keep what is fetched or made. None means the cache folder of this package.

    Raises:
        ValueError: There is no such source, or it has no file for any split.
        RuntimeError: Something cannot be fetched or made here.
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
        folder = _unpacked(folder, cache_dir)
    found = files_by_split(task, [path.relative_to(folder).as_posix() for path in _files(folder)])
    if not any(found.values()):
        raise ValueError(
            f"{source} has no files for {task.name}: expected names such as {_examples(task)} with a suffix "
            f"among {', '.join(SUFFIXES)} in {folder}. Name them so, or give train_file, val_file and "
            "test_file."
        )
    paths = {split: tuple(folder / name for name in names) for split, names in found.items()}
    return SplitFiles(paths["train"], paths["val"], paths["test"], words)


def files_by_split(task: PromptedTask, names: Iterable[str]) -> dict[str, list[str]]:
    """Which of these files belong to which split, by the patterns of the task.

    A file whose own name tells nothing is known by its folder, as in the hub's `default/train/0000.parquet`.

    Args:
        task: Has the patterns.
        names: Paths below one folder, with "/".
    """
    known = [name for name in map(PurePosixPath, names) if _is_rows(name)]
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        candidates = [
            [name for name in known if name.suffix == suffix and fnmatch(_telling_name(task, name), pattern)]
            for pattern in task.patterns[split]
            for suffix in SUFFIXES
        ]
        found[split] = sorted(str(name) for name in next(filter(None, candidates), []))
    return found


def _is_rows(name: PurePosixPath) -> bool:
    return name.suffix in SUFFIXES and not fnmatch(name.name, "*.tables.*")


def _telling_name(task: PromptedTask, name: PurePosixPath) -> str:
    patterns = [pattern for split in SPLITS for pattern in task.patterns[split]]
    if any(fnmatch(name.name, pattern) for pattern in patterns) or not name.parent.name:
        return name.name
    return f"{name.parent.name}{name.suffix}"


def _files(folder: Path) -> Sequence[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


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
        f"source={source!r} is neither a folder nor a tar archive (seen from {Path.cwd()}). "
        f"{task.name} knows '{default_source(task)}', {fetched}, and the path of a folder or a tar archive."
    )


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES) and path.is_file()


def _unpacked(archive: Path, cache_dir: Path | None) -> Path:
    """The folder in the cache that holds the files of rows in an archive, unpacked if they are not yet."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    folder = cache_folder(cache_dir) / f"unpacked-{digest[:16]}"
    if (folder / WHOLE).exists():
        return folder
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                content = opened.extractfile(member) if member.isfile() else None
                if content is not None and Path(member.name).suffix in SUFFIXES:
                    keep(folder / Path(member.name).name, content.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(":")
        raise ValueError(f"{archive} cannot be read as a tar archive: {reason}. Fetch it again.") from error
    keep(folder / WHOLE, b"")
    return folder


def _examples(task: PromptedTask) -> str:
    return ", ".join(task.patterns[split][0] for split in SPLITS)
