"""The package's logger: one line per change of what trains, and one per text that is read."""

import logging
import sys

__all__ = ["log"]


class _Logger(logging.Logger):
    """Clears the bars of tqdm before any handler prints a line, and draws them again below it."""

    def handle(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")  # without its import there is no such bar
        if tqdm is None:
            return super().handle(record)
        with tqdm.tqdm.external_write_mode(file=sys.stderr):
            return super().handle(record)

    # lighter and loguru look for the caller in the stack, and pass over frames of logging
    handle.__code__ = handle.__code__.replace(co_filename=logging.__file__)


class Terminal(logging.Handler):
    """Prints to the `sys.stderr` of the moment; live bars of Rich, notebooks and tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # At once: in a notebook Rich prints half a line by flushing, which prints it, and so on.
            print(f"{self.format(record)}\n", end="", file=sys.stderr)
        except Exception:  # as every handler of `logging` does
            self.handleError(record)


_usual = logging.getLoggerClass()
logging.setLoggerClass(_Logger)
log = logging.getLogger("lighter_freezers")
logging.setLoggerClass(_usual)
log.setLevel(logging.INFO)
if not logging.getLogger().hasHandlers():  # as Lightning does: print, unless logging is configured
    log.addHandler(Terminal())
    log.propagate = False
