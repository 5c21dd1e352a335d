"""The cache folder for tokenizers and labels, and atomic writes to it."""

import os
from pathlib import Path

from lighter_freezers.reports.whole_files import write_whole

__all__ = ["cache_folder", "keep"]


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
        raise RuntimeError(
            f"{file.name} cannot be kept in {file.parent}: {error}. Give a folder that can be written: "
            "`cache_dir:`, or the environment variable XDG_CACHE_HOME."
        ) from error
