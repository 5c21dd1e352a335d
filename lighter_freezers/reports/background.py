"""Runs one call at a time beside the training thread. A part that reports never ends a run."""

import threading
from collections.abc import Callable

from lighter_freezers._log import log

__all__ = ["Background"]


class Background:
    """A thread for calls that take long.

    Args:
        title: What the calls make, for the warning about one that failed.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._thread: threading.Thread | None = None

    def start(self, call: Callable[[], object]) -> bool:
        """Start a call, unless the last one is still running; returns whether it was started."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=self._run, args=(call,), name=self._title)
        self._thread.start()
        return True

    def wait(self) -> None:
        """Wait until nothing is running."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __deepcopy__(self, memo: object) -> "Background":
        """A copy of a callback has a thread of its own."""
        return Background(self._title)

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # of any logger's client
            log.warning("%s was not written: %s: %s", self._title, type(error).__name__, error)
