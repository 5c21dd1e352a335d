"""B13: what imports load and take, in fresh interpreters that take turns.

Exact, and asserted by tests: which modules are in `sys.modules` afterwards. Recorded: CPU seconds of the
process, less those of a bare interpreter. The peers run once, since they take seconds.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.measure import Report, Samples, interleave, main

ROOT = Path(__file__).parents[1]
BARE, PACKAGE, TORCH = "pass", "import lighter_freezers", "import torch"
GPT = "from lighter_freezers.gpt import GPT"
LIGHTNING, BOTH = "import pytorch_lightning", "import pytorch_lightning, lightning.pytorch"
FREEZER = "from lighter_freezers import Freezer"
PEERS = {
    "pytorch_lightning": LIGHTNING,
    "lighter": "import lighter",
    "finetuning_scheduler": "import finetuning_scheduler",
}
NEVER = {"peft", "torchvision", "tensorboard", "pandas"}
_MARK = "--- now ---"
_END = f"\nimport sys, time\nprint('{_MARK}', time.process_time(), *sys.modules, sep='\\n')"


class Fresh:
    """Runs statements in fresh interpreters, and keeps which modules each of them loads."""

    def __init__(self) -> None:
        self.modules: dict[str, frozenset[str]] = {}

    def seconds(self, statement: str) -> float:
        """CPU seconds of an interpreter that runs a statement."""
        command = [sys.executable, "-W", "ignore", "-c", statement + _END]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        seconds, *modules = done.stdout.rpartition(f"{_MARK}\n")[2].splitlines()  # imports may print
        self.modules[statement] = frozenset(modules)
        return float(seconds)

    def loaded(self, statement: str) -> frozenset[str]:
        """The modules that a statement loads, those of a bare interpreter aside."""
        for each in (BARE, statement):
            if each not in self.modules:
                self.seconds(each)
        return self.modules[statement] - self.modules[BARE]

    def strangers(self, statement: str, base: str = BARE) -> set[str]:
        """Top-level names of what a statement loads beyond the standard library, our package and `base`."""
        beyond = self.loaded(statement) - self.loaded(base)
        return {name.split(".")[0] for name in beyond} - set(sys.stdlib_module_names) - {"lighter_freezers"}


def has_gpt() -> bool:
    """Whether the GPT is in this checkout."""
    return find_spec("lighter_freezers") is not None and find_spec("lighter_freezers.gpt.model") is not None


def add_modules(report: Report, fresh: Fresh) -> None:
    """The exact part."""
    found = {
        f"`{PACKAGE}`: packages beyond the standard library": fresh.strangers(PACKAGE),
        f"`{FREEZER}`: packages beyond both Lightnings": fresh.strangers(FREEZER, BOTH),
        "of these, peft, torchvision, tensorboard or pandas": fresh.strangers(FREEZER, BOTH) & NEVER,
    }
    if has_gpt():
        found[f"`{GPT}`: packages beyond torch"] = fresh.strangers(GPT, TORCH)
    for what, names in found.items():
        report.add(what, len(names), "", 0, is_exact=True)


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    fresh, report = Fresh(), Report("B13", "what imports load and take", _method(options))
    light = interleave(_calls(fresh, [BARE, PACKAGE]), 3 * options.rounds)
    bare = light.median(BARE)
    report.add(BARE, bare * 1e3, "ms")
    own = light.added(PACKAGE, BARE)
    report.add(f"{PACKAGE}: added", own * 1e3, "ms", 10.0)
    if options.light:
        report.skip("everything else", "--light")
        return report
    statements = [TORCH, GPT, BOTH, FREEZER]
    if not has_gpt():
        report.skip(GPT, "not in this checkout yet")
        statements.remove(GPT)
    heavy = interleave(_calls(fresh, statements), options.rounds)
    add_modules(report, fresh)
    for statement in statements:
        report.add(f"{statement}: added", heavy.median(statement) - bare, "s")
    _judge(report, heavy)
    _add_peers(report, fresh, own, bare)
    return report


def _judge(report: Report, heavy: Samples) -> None:
    if GPT in heavy.seconds:
        report.add("GPT / torch", heavy.ratio(GPT, TORCH), "x", 1.03)
    report.add("Freezer / both Lightnings", heavy.ratio(FREEZER, BOTH), "x", 1.01)


def _add_peers(report: Report, fresh: Fresh, own: float, bare: float) -> None:
    for package, statement in PEERS.items():
        if find_spec(package) is None:
            report.skip(package, "not installed")
            continue
        theirs = fresh.seconds(statement) - bare
        report.add(f"{statement}: added", theirs, "s")
        if statement != LIGHTNING:
            report.add(f"{PACKAGE} / {statement}", own / theirs, "x", 0.005)


def _calls(fresh: Fresh, statements: list[str]) -> dict[str, Callable[[], float]]:
    return {statement: partial(fresh.seconds, statement) for statement in statements}


def _method(options: argparse.Namespace) -> str:
    return f"{options.rounds} rounds of fresh interpreters, CPU time of the process, medians, paired ratios"


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.imports", description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--light", action="store_true", help="only the interpreter and the package")
    return options


if __name__ == "__main__":
    main(run, parser())
