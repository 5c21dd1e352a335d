"""All benchmarks of the page, one command: `python -m benchmarks`.

Each is a process of its own, on one thread; as many run at a time as there are cores, at most two, so that
the CPU times of one are hardly those of the others. With `--json FOLDER` the results are written there.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

from benchmarks.code_versions import MEASURES

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; the exit status is that of the last one that failed."""
    parser = argparse.ArgumentParser("benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MEASURES], default=[], help="some of them")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write the results there")
    options = parser.parse_args(arguments)
    names = options.names or list(MEASURES)
    begin, failed = time.monotonic(), 0
    with ThreadPoolExecutor(min(2, cpu_count() or 1)) as pool:
        results = pool.map(lambda name: _run(name, options.json), names)
        for name, (status, text, seconds) in zip(names, results, strict=True):
            print(f"{text}\n{name}: {seconds:.0f} s\n", flush=True)
            failed = status or failed
    print(f"{len(names)} benchmarks: {time.monotonic() - begin:.0f} s")
    return failed


def _run(name: str, folder: Path | None) -> tuple[int, str, float]:
    written = [] if folder is None else ["--json", str(folder / f"{name}.json")]
    command = [sys.executable, "-m", f"benchmarks.{name}", *written]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    text = done.stdout if not done.returncode else f"{done.stdout}{done.stderr}{name} failed"
    return done.returncode, text, time.monotonic() - begin


if __name__ == "__main__":
    sys.exit(main())
