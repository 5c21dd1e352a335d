"""Lets what only reports on a run fail without ending it.

A full or read-only disk is one warning, and so is a file of the run that other code damaged.
"""

import warnings
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Harmless"]

Result = TypeVar("Result")


class Harmless:
    """Calls what writes. After the first failure it warns, and calls nothing more until `begin`.

    Args:
        title: What writes, for the warning.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._has_failed = False

    def begin(self) -> None:
        """A new run begins, perhaps on another disk."""
        self._has_failed = False

    def __call__(self, write: Callable[[], Result]) -> Result | None:
        """The result of a call; None where it failed, or one before it."""
        if self._has_failed:
            return None
        try:
            return write()
        except (OSError, ValueError) as error:
            self._has_failed = True
            is_disk = isinstance(error, OSError)
            way_out = ". Free space, or give a folder that can be written." if is_disk else ""
            warnings.warn(
                f"{self._title} writes nothing more in this run, which goes on without it: {error}{way_out}",
                stacklevel=2,
            )
            return None
