"""Files of data sets from the network: plain addresses, or the Hugging Face hub. They are kept."""

import http.client
import urllib.request
from pathlib import Path, PurePosixPath

from lighter_freezers._log import log
from lighter_freezers.experiments.data.cache import cache_folder, keep
from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.prompts import PromptedTask
from lighter_freezers.experiments.data.rows import SUFFIXES

__all__ = ["fetched", "hub_folder"]

TIMEOUT = 60.0  # seconds without an answer


def hub_folder(task: PromptedTask, dataset: str, cache_dir: Path | None = None) -> Path:
    """The folder, or the archive, with the files of a task, fetched unless they are there already.

    Args:
        task: Knows the addresses of its files, or the name of its data set on the hub.
        dataset: Another data set on the hub, as `OWNER/NAME` or `OWNER/NAME@REVISION`. Empty for the task's.
        cache_dir: Where to keep files from plain addresses. None means the cache folder of this package. The
            hub's own files go to its own cache, `$HF_HOME`.

    Raises:
        ValueError: The task has no data on the hub.
        RuntimeError: They cannot be fetched.
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
    """A file from an address, in this folder; a file that is there already is not fetched again.

    Raises:
        RuntimeError: It cannot be fetched.
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
    log.info("Fetched %s, %s bytes, to %s.", address, f"{len(content):,}", file)
    return file


def _hub_snapshot(task: PromptedTask, dataset: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = dataset.partition("@")
    stems = {pattern.removesuffix(".*").strip("*") for split in SPLITS for pattern in task.patterns[split]}
    patterns = [f"*{stem}*{suffix}" for stem in sorted(stems) for suffix in SUFFIXES]
    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision or None, allow_patterns=patterns
        )
    except Exception as error:  # OSError, or what the hub's HTTP client of this version raises
        raise _unreachable(task.name, f"the data set {name} of the hub", error) from error
    return Path(folder)


def _unreachable(task_name: str, what: str, error: Exception) -> RuntimeError:
    reason = str(error).strip().split("\n")[0]
    return RuntimeError(
        f"{task_name}: {what} cannot be fetched ({type(error).__name__}: {reason}). Without a network give "
        "files of your own, `train_file:`, `val_file:` and `test_file:`, or a folder or archive that was "
        "fetched elsewhere, `source: PATH`; or try the run out on the small fixtures, `source: fixture`."
    )
