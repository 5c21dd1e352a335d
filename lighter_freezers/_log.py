"""The package's logger: one line per change of what trains, and one per text that is read."""

import logging
import sys

__all__ = ["log"]


class Terminal(logging.Handler):
    """Prints above progress bars.

    Rich's bars redirect `sys.stderr` while they are live, and notebooks and tests replace it: the stream is
    looked up at each line. A tqdm bar is cleared before the line and drawn again below it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # without its import there is no such bar
        try:
            (print if tqdm is None else tqdm.tqdm.write)(self.format(record), file=sys.stderr)
        except Exception:  # as every handler of `logging` does
            self.handleError(record)


log = logging.getLogger("lighter_freezers")
log.setLevel(logging.INFO)
if not logging.getLogger().hasHandlers():  # as Lightning does: print, unless logging is configured
    log.addHandler(Terminal())
    log.propagate = False
