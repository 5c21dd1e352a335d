"""What a user sees of a run: the lines about changes stay on the screen, above every progress bar."""

import contextlib
import io
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lighter_freezers import Freezer, _log
from tests import lab
from tests.cli.small_run import CONFIG
from tests.lab import NAMESPACES
from tests.terminal import screen_of

BARS = ("RichProgressBar", "TQDMProgressBar")
WIDTHS = (80, 110, 200)
CORE = [(NAMESPACES[0], BARS[0], 80), (NAMESPACES[1], BARS[1], 110)]
WIDE = [(space, bar, width) for space in NAMESPACES for bar in BARS for width in WIDTHS]
CHANGES = (
    "step 0: starts with frozen layer1, layer2 (144 parameters), 64 % frozen, held by Freezer['layer1.' "
    "until step 1], Freezer['layer2.' until step 2]",
    "step 1: thawed layer1 (72 parameters), 32 % frozen, held by Freezer['layer2.' until step 2]",
    "step 2: thawed layer2 (72 parameters), 0 % frozen",
    "step 5: froze layer10 (72 parameters), 32 % frozen, held by Freezer['layer10.' from step 5]",
)


@pytest.mark.parametrize(
    ("namespace", "bar", "width"),
    [*CORE, *(pytest.param(*case, marks=pytest.mark.wide) for case in WIDE if case not in CORE)],
)
def test_lines_about_changes_stay_above_a_bar(namespace: str, bar: str, width: int) -> None:
    """Each stands once and whole, in order, from the left edge; nothing else is on its lines."""
    screen = screen_of([sys.executable, "-m", "tests.terminal", namespace, bar], width)

    places = [_place(screen, change) for change in CHANGES]
    assert places == sorted(places)
    assert places[-1] < screen.rindex("metric_0") < screen.index("the run has ended")


@pytest.mark.wide
@pytest.mark.parametrize("bar", BARS)
def test_lines_stay_above_the_bar_of_lighter_fit(bar: str, tmp_path: Path) -> None:
    """`lighter` prints them itself, with time and place; each still has a line of its own."""
    callbacks = (
        "  callbacks:\n"
        "    - {_target_: lighter_freezers.Freezer, name_starts_with: network.blocks.0, until_step: 10}\n"
        f"    - {{_target_: pytorch_lightning.callbacks.{bar}, refresh_rate: 1}}\n"
    )
    config = tmp_path / "run.yaml"
    text = CONFIG.replace("enable_progress_bar: false", "max_steps: -1")
    config.write_text(text.replace("  callbacks:\n", callbacks))

    screen = screen_of([shutil.which("lighter") or "lighter", "fit", str(config)], 110)

    start, thaw = (
        re.search(rf"^20.*INFO +\|  {line}", screen, re.M) for line in ("step 0: st", "step 10: th")
    )
    assert start
    assert thaw
    assert start.start() < thaw.start() < screen.rindex("Epoch 4")
    assert "_log.py" not in screen  # which lighter takes for the caller, if it is seen in the stack


def test_a_line_names_its_caller_to_handlers_that_look_in_the_stack() -> None:
    """As those of lighter and loguru do: the first frame outside of `logging`."""
    places: list[str] = []

    class Intercept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            frame = sys._getframe().f_back
            while frame is not None and frame.f_code.co_filename == logging.__file__:
                frame = frame.f_back
            places.append(frame.f_code.co_filename if frame is not None else "")

    intercept = Intercept()
    _log.log.addHandler(intercept)
    try:
        _log.log.info("a line")
    finally:
        _log.log.removeHandler(intercept)

    assert places == [__file__]


def test_lines_go_to_the_stream_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook, a bar or a test may replace `sys.stderr` after the import."""
    logger = logging.getLogger("lighter_freezers")
    monkeypatch.setattr(logger, "handlers", [_log.Terminal()])
    monkeypatch.setattr(logger, "propagate", False)
    now = io.StringIO()

    with contextlib.redirect_stderr(now):
        lab.frozen_at_each_step(NAMESPACES[0], [Freezer(name_starts_with="layer1.", until_step=2)])

    assert "step 2: thawed layer1" in now.getvalue()


def test_lines_of_one_message_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich in a notebook flushes what stands in its buffer while it prints it, without an end."""
    monkeypatch.setattr(_log.log, "handlers", [_log.Terminal()])
    monkeypatch.setattr(_log.log, "propagate", False)

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            assert text.endswith("\n") or not text
            return super().write(text)

    with contextlib.redirect_stderr(Stream()) as shown:
        _log.log.info("one\ntwo")

    assert shown.getvalue() == "one\ntwo\n"


def _place(screen: str, line: str) -> int:
    """Where a line stands on a screen that breaks lines anywhere; it stands there once."""
    anywhere = r"\s*".join(map(re.escape, line.replace(" ", "")))
    found = [match.start() for match in re.finditer(rf"^{anywhere}$", screen, re.MULTILINE)]
    assert len(found) == 1, f"{len(found)} times: {line}\n{screen}"
    return found[0]


@pytest.mark.wide
@pytest.mark.parametrize("users_own", [False, True])
def test_our_import_lets_lightning_speak_once(users_own: bool) -> None:
    """`import lightning` adds a handler beside those of the root logger; that of a user's import stays."""
    lines = ["import logging", "logging.basicConfig(level='INFO')", "import pytorch_lightning as pl"]
    lines += ["import lightning"] * users_own
    lines += ["from lighter_freezers import Freezer", "pl.Trainer(logger=False, accelerator='cpu')"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )

    assert done.stderr.count("GPU available") == (2 if users_own else 1)
