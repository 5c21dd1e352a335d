"""B14: what FreezeStateLogger writes and takes, with a TensorBoardLogger, in a real fit.

In a steady state: events in the event files, hooks of its own that run, and the time that Lightning takes
to skip its hooks. A transition: its `on_transition` with one block changing and with half of all tensors
changing, on the thread that trains, and with the thread that writes the file until all is flushed. The
peers are what users write by hand at each step: `add_scalar` per block and per tensor, into a file of their
own, timed in the same transitions.
"""

import argparse
import importlib
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from benchmarks import fits
from benchmarks.fits import Fit
from benchmarks.hooks import FAR
from benchmarks.measure import Report, Samples, cpu_seconds, interleave, main, no_collection
from benchmarks.models import NUM_BLOCKS, Tensors, half_of_the_prefixes
from lighter_freezers import Freezer, FreezeStateLogger
from lighter_freezers.reports.step_curves import NUM_POINTS

PERIOD = 60  # steps in which one block and half of the tensors freeze and thaw
BLOCK, HALF = (3, 18), (33, 48)  # when in a period
BY_BLOCK, BY_TENSOR = "naive: add_scalar per block", "naive: add_scalar per tensor"
SKIPPING = "a step without a change: Lightning skips its hooks"
PER_STEP_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)

Seconds = dict[str, list[float]]


def windows(bounds: tuple[int, int], num_periods: int) -> list[list[int]]:
    """The same window in each period."""
    return [[bound + PERIOD * period for bound in bounds] for period in range(num_periods)]


def transition_steps(num_periods: int) -> set[int]:
    """The steps at which something changes."""
    every = windows(BLOCK, num_periods) + windows(HALF, num_periods)
    return {step for window in every for step in window}


class Stopwatch:
    """Times calls on this thread, and on all threads until the file is written."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}

    def time(self, what: str, call: Callable[[], object], flush: Callable[[], object]) -> None:
        """Run something that logs."""
        flush()
        thread, process = time.thread_time(), time.process_time()
        call()
        self._keep(f"{what}, training thread", time.thread_time() - thread)
        flush()
        self._keep(f"{what}, with the writing thread", time.process_time() - process)

    def _keep(self, what: str, seconds: float) -> None:
        self.seconds.setdefault(what, []).append(seconds)


def time_transitions(num_tensors: int, num_periods: int, num_naive: int, folder: Path) -> Seconds:
    """One fit with its transitions, and the naive loggers next to it."""
    network, watch = Tensors(num_tensors), Stopwatch()
    callback: Any = FreezeStateLogger()
    logger = TensorBoardLogger(folder, name="", version="ours")
    bare, naive = callback.on_transition, SummaryWriter(folder / "naive")

    def on_transition(trainer: Any, module: Any, transition: Any) -> None:
        if transition.is_initial:
            bare(trainer, module, transition)
            return
        num_changed = len(transition.frozen) + len(transition.thawed)
        what = "half of the tensors change" if 2 * num_changed > num_tensors // 2 else "one block changes"
        step = transition.optimizer_step
        watch.time(what, lambda: bare(trainer, module, transition), logger.experiment.flush)
        if step < PERIOD * num_naive:
            watch.time(BY_BLOCK, lambda: _by_block(naive, network, step), naive.flush)
            watch.time(BY_TENSOR, lambda: _by_tensor(naive, network, step), naive.flush)

    callback.on_transition = on_transition
    freezers = [
        Freezer(name_starts_with="h.3.", windows=windows(BLOCK, num_periods)),
        Freezer(name_starts_with=half_of_the_prefixes(network), windows=windows(HALF, num_periods)),
    ]
    fit = Fit(network, [*freezers, callback], steps=PERIOD * num_periods, logger=logger)
    with no_collection():
        fits.run(fit, lambda *_: None)
    naive.close()
    return watch.seconds


def _by_block(writer: Any, network: Tensors, step: int) -> None:
    for index in range(NUM_BLOCKS):
        flags = [parameter.requires_grad for parameter in network.h[index].parameters()]
        writer.add_scalar(f"frozen/h.{index}", 1 - sum(flags) / max(1, len(flags)), step)


def _by_tensor(writer: Any, network: Tensors, step: int) -> None:
    for name, parameter in network.named_parameters():
        writer.add_scalar(f"frozen/{name}", float(not parameter.requires_grad), step)


def events(folder: Path) -> list[int]:
    """The steps of all events in a folder, but for the file's version."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return [
        event.step
        for path in sorted(folder.glob("events.*"))
        for event in LegacyEventFileLoader(str(path)).Load()
        if event.HasField("summary")
    ]


def steady_events(steps: list[int], num_periods: int) -> int:
    """How many belong to no start, transition, step before one, step in which curves settle, or end."""
    changes = transition_steps(num_periods)
    settling = {change + late for change in {0, *changes} for late in range(NUM_POINTS)}
    known = settling | {change - 1 for change in changes} | {PERIOD * num_periods}
    return sum(step not in known for step in steps)


def time_skipping(num_rounds: int, num_steps: int = 500) -> Samples:
    """CPU seconds per step in which Lightning looks at the per-step hooks and skips them."""
    namespace = importlib.import_module(f"{fits.OURS}.trainer.call")
    found: list[Samples] = []

    def then(live: list[tuple[Any, Any]]) -> None:
        trainer, _ = live[0]
        without = [callback for callback in trainer.callbacks if not isinstance(callback, FreezeStateLogger)]
        taken = {hook for each in without for hook in PER_STEP_HOOKS if callable(getattr(each, hook))}
        skipped = [hook for hook in PER_STEP_HOOKS if hook not in taken]

        def steps(callbacks: list[Any]) -> float:
            trainer.callbacks = callbacks
            begin = cpu_seconds()
            for _ in range(num_steps):
                for hook in skipped:
                    namespace._call_callback_hooks(trainer, hook)
            return (cpu_seconds() - begin) / num_steps * len(PER_STEP_HOOKS) / len(skipped)

        turns = {"without": partial(steps, without), "with": partial(steps, list(trainer.callbacks))}
        with no_collection():
            found.append(interleave(turns, num_rounds))

    network = Tensors(150)
    fits.alive([Fit(network, [Freezer(name_starts_with="h.3.", until_step=FAR), FreezeStateLogger()])], then)
    return found[0]


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    method = f"{options.params:,} tensors in {NUM_BLOCKS} blocks, CPU time, medians"
    report = Report("B14", "writing the freeze state", method)
    with fits.quiet(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = time_transitions(options.params, options.periods, options.naive, folder)
        steps = events(folder / "ours")
        skipping = time_skipping(options.rounds)
    report.add("events", len(steps), "", is_exact=True)
    report.add("events in a steady state", steady_events(steps, options.periods), "", 0, is_exact=True)
    num_hooks = sum(callable(getattr(FreezeStateLogger, hook)) for hook in PER_STEP_HOOKS)
    report.add("its hooks that run per step", num_hooks, "", 0, is_exact=True)
    report.add(SKIPPING, skipping.added("with", "without") * 1e6, "us", 0.1)
    for what, taken in seconds.items():
        is_judged = "naive" not in what
        report.add(what, median(taken) * 1e3, "ms", 1.0 if is_judged else None)
    return report


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.logging_cost", description=__doc__)
    options.add_argument("--params", type=int, default=15_000, metavar="N")
    options.add_argument("--periods", type=int, default=10, help="of two freezes and two thaws")
    options.add_argument("--naive", type=int, default=1, help="periods in which the peers run too")
    options.add_argument("--rounds", type=int, default=50, help="turns of skipping its hooks")
    return options


if __name__ == "__main__":
    main(run, parser())
