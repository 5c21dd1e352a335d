"""The folder where tokenizers and labels are kept: where it is, and how a file gets there whole."""

import os
import tempfile
from pathlib import Path

__all__ = ["cache_folder", "keep"]


def cache_folder(cache_dir: Path | None) -> Path:
    """The folder given; without one `$XDG_CACHE_HOME/lighter_freezers`, or `~/.cache/lighter_freezers`."""
    if cache_dir is not None:
        return cache_dir
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "lighter_freezers"


def keep(file: Path, content: bytes) -> None:
    """Write a file so that no reader ever sees half of it.

    Raises:
        RuntimeError: The folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=file.parent, suffix=".part", delete=False) as part:
            part.write(content)
        os.replace(part.name, file)
    except OSError as error:
        raise RuntimeError(
            f"{file.name} cannot be kept in {file.parent}: {error}. Give a folder that can be written: "
            "`cache_dir:`, or the environment variable XDG_CACHE_HOME."
        ) from error
