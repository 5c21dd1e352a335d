"""A terminal whose screen can be read back, and the run with progress bars that is shown on it."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pyte

NUM_LINES = 90


def screen_of(command: Sequence[str], columns: int) -> str:
    """What a terminal of this width shows after a command: its lines, joined by line feeds."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", NUM_LINES, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    running = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm-256color"}
    )
    os.close(theirs)
    screen = pyte.Screen(columns, NUM_LINES)
    stream = pyte.ByteStream(screen)
    while True:
        try:
            written = os.read(ours, 65536)
        except OSError:  # on Linux the end of the other side
            break
        if not written:
            break
        stream.feed(written)
    os.close(ours)
    assert running.wait() == 0, "\n".join(screen.display)
    return "\n".join(line.rstrip() for line in screen.display)


def fit_with_bar(namespace: str, bar: str) -> None:
    """Two epochs with a bar that has more metrics than fit beside it, and three changes on the way."""
    from lighter_freezers import Freezer
    from tests.lab import batches, regression, trainer

    module = regression(namespace)
    loss_of = module.loss

    def loss(batch: Any) -> Any:
        time.sleep(0.03)  # so that the bar is drawn between two changes
        value = loss_of(batch)
        module.log_dict({f"metric_{index}": value for index in range(12)}, prog_bar=True)
        return value

    module.loss = loss
    callbacks = [Freezer(name_starts_with=f"layer{step}.", until_step=step) for step in (1, 2)]
    callbacks += [Freezer(name_starts_with="layer10.", from_step=5)]
    callbacks.append(getattr(import_module(f"{namespace}.callbacks"), bar)(refresh_rate=1))
    fit = trainer(namespace, callbacks=callbacks, max_epochs=2, enable_progress_bar=True).fit
    fit(module, batches(), batches())
    print("the run has ended")


if __name__ == "__main__":
    fit_with_bar(*sys.argv[1:])
