"""Takes a picture of a run in TensorBoard as it opens, with a headless browser and TensorBoard's own server.

`python -m benchmarks.screenshots outputs/quickstart docs/images/tensorboard.png` needs `chromium`,
`chromium-browser`, `google-chrome` or `chrome` on the PATH.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1500, 1500  # pixels of the window
PATIENCE = 60  # seconds until the server answers


def browser() -> str | None:
    """The path of a browser; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """TensorBoard over a folder; its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://localhost:{port}"
        _wait_for(f"{address}/data/plugins_listing")
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(address).close()
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            time.sleep(3)  # it reads the runs in the meantime
            return


def visit(program: str, address: str, *options: str, height: int = HEIGHT) -> str:
    """Open the first page as a new user does; returns what the browser prints."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            program,
            "--headless=new",
            "--no-sandbox",  # for root in a container
            "--disable-3d-apis",  # lines as SVG: a headless browser does not wait for the others
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={WIDTH},{height}",
            "--virtual-time-budget=20000",
            *options,
            address,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def main() -> None:
    """Take one picture."""
    parser = argparse.ArgumentParser("benchmarks.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("picture", type=Path, help="a .png file")
    parser.add_argument("--tab", default="timeseries", help="the tab of TensorBoard")
    parser.add_argument("--height", type=int, default=HEIGHT, help="of the window, in pixels")
    options = parser.parse_args()
    program = browser()
    if program is None:
        parser.error(f"no browser on the PATH: install one of {', '.join(NAMES)}")
    with tensorboard(options.folder) as address:
        picture = f"--screenshot={options.picture.resolve()}"
        visit(program, f"{address}/#{options.tab}", picture, height=options.height)


if __name__ == "__main__":
    main()
