"""How all benchmarks measure and report: interleaved rounds, medians, the CPU clock, versions, JSON.

Variants take turns, and every other round turns their order round, so that a drift of the machine hits all of
them alike. Ratios are medians of the ratios within one round. The clock is the CPU time of this process, with
torch on one thread: other load on the machine does not count.
"""

import argparse
import datetime
import gc
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.code_versions import MEASURES, current

__all__ = ["Report", "Row", "Samples", "cpu_seconds", "interleave", "main", "versions"]

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "lightning",
    "lighter",
    "finetuning-scheduler",
    "peft",
    "lighter-freezers",
)

cpu_seconds = time.process_time


@dataclass(frozen=True)
class Row:
    """One line of a result.

    Attributes:
        what: What was measured.
        value: The number.
        unit: Its unit; "x" for a ratio.
        target: The most that it should be; None where the number is for comparison only.
        is_exact: Whether it is a count, the same on every machine. Tests assert these.
    """

    what: str
    value: float
    unit: str
    target: float | None = None
    is_exact: bool = False

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        return None if self.target is None else self.value <= self.target


@dataclass
class Report:
    """The result of one benchmark."""

    benchmark: str
    title: str
    method: str
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(
        self, what: str, value: float, unit: str, target: float | None = None, *, is_exact: bool = False
    ) -> None:
        """Add a line."""
        self.rows.append(Row(what, float(value), unit, target, is_exact))

    def skip(self, what: str, reason: str) -> None:
        """Say what was left out, and why."""
        self.skipped.append(f"{what}: {reason}")

    def value(self, what: str) -> float:
        """The number of a line."""
        return next(row.value for row in self.rows if row.what == what)

    def as_text(self) -> str:
        """A small table for the terminal."""
        width = max((len(row.what) for row in self.rows), default=0)
        lines = [f"{self.benchmark}: {self.title}", f"{self.method}", ""]
        for row in self.rows:
            line = f"{row.what:{width}}  {shown(row.value, row.unit):>12}"
            if row.target is not None:
                line += f"   target <= {shown(row.target, row.unit)}: {'met' if row.is_met else 'MISSED'}"
            lines.append(line)
        return "\n".join(lines + [f"skipped: {what}" for what in self.skipped])

    def as_json(self, command: Sequence[str]) -> str:
        """Everything, with the versions it was measured with, also of the code that the command measures."""
        name = command[2].partition(".")[2] if len(command) > 2 else ""
        content = {
            "benchmark": self.benchmark,
            "title": self.title,
            "method": self.method,
            "command": " ".join(command),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "versions": versions(),
            "code": current(name) if name in MEASURES else {},
            "rows": [{**asdict(row), "is_met": row.is_met} for row in self.rows],
            "skipped": self.skipped,
        }
        return json.dumps(content, indent=1) + "\n"


def shown(value: float, unit: str) -> str:
    """A number with three significant digits and its unit; whole numbers as they are."""
    number = f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}".strip()


class Samples:
    """What each variant took in each round; round i of one belongs to round i of another."""

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self.seconds = seconds

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Median of the ratios within one round."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def added(self, name: str, base: str) -> float:
        """Median of the differences within one round, in seconds."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(one - other for one, other in pairs)


def interleave(variants: Mapping[str, Callable[[], float]], num_rounds: int) -> Samples:
    """Let variants take turns.

    Args:
        variants: Name to a function that runs a variant once and returns the seconds that count.
        num_rounds: How often each of them runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for _ in range(num_rounds):
        for name in order:
            seconds[name].append(variants[name]())
        order.reverse()
    return Samples(seconds)


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of what is measured."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def versions() -> dict[str, str]:
    """Versions of Python, of the machine's system and of each package that is installed."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "cpu": _processor()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def main(
    run: Callable[[argparse.Namespace], Report],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> Report:
    """Parse the command line, measure, print the table and write the JSON.

    Args:
        run: Measures.
        parser: Knows the options of the benchmark; `--json` is added here.
        arguments: The command line; None for that of the process.
    """
    parser.add_argument("--json", type=Path, metavar="PATH", help="write results and versions to this file")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = run(options)
    print(report.as_text())
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        command = _without_json(arguments)
        options.json.write_text(report.as_json(["python", "-m", parser.prog, *command]))
    return report


def _without_json(arguments: Sequence[str]) -> list[str]:
    kept = list(arguments)
    if "--json" in kept:
        place = kept.index("--json")
        del kept[place : place + 2]
    return kept
