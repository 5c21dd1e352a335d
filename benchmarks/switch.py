"""B3: finding the parameters of many prefixes, and freezing and thawing them, at many tensors.

Three things are measured. Finding: `ParameterSelector.select` against a bare walk over
`named_parameters()`. Flags: one hold taken and let go, against loops over a cached list: the naive floor
only sets `requires_grad`; the equal floor does what freezing has to do, which is to read the flag, set it
and clear the gradient (and to count who holds, which it leaves out). Transition: the whole hook in real
fits, with the log line formatted, against lighter's Freezer with its log as plain text (its Rich log in
`lighter fit` takes longer), and `step()` of finetuning-scheduler. Half of all tensors change at each
transition. Set-up: what many Freezers add to the time to the first step (`benchmarks/set_up.py`).
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from torch.nn import Parameter

from benchmarks import fits, peers
from benchmarks.fits import Fit
from benchmarks.hooks import HEAD
from benchmarks.measure import Report, Samples, cpu_seconds, interleave, main, no_collection
from benchmarks.models import Tensors, half_of_the_prefixes
from benchmarks.set_up import add_set_up
from lighter_freezers import Freezer
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.selection.select import ParameterSelector

NUM_SWITCHES = 4  # freezes, and as many thaws, in one fit of ours
FREEZE, THAW = "transition: freeze", "transition: thaw"
LIGHTER_FREEZE, LIGHTER_THAW, FTS = "lighter Freezer: freeze", "lighter Freezer: thaw", "FTS step(): thaw"

Timed = dict[str, list[float]]


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """CPU seconds of one call."""

    def once() -> float:
        begin = cpu_seconds()
        call()
        return cpu_seconds() - begin

    return once


def set_flags(parameters: Sequence[Parameter], flag: bool) -> None:
    """The naive floor."""
    for parameter in parameters:
        parameter.requires_grad = flag


def freeze_equally(parameters: Sequence[Parameter]) -> None:
    """The equal floor of freezing: read the flag, set it, clear the gradient."""
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.requires_grad = False
            parameter.grad = None


def time_finding(network: Tensors, prefixes: Sequence[str], num_rounds: int) -> Samples:
    """Seconds of finding parameters."""
    selector = ParameterSelector(prefixes=tuple(prefixes))
    with no_collection():
        return interleave(
            {
                "walk": timed(lambda: list(network.named_parameters())),
                "select": timed(lambda: selector.select(network)),
            },
            num_rounds,
        )


def time_flags(parameters: Sequence[Parameter], num_rounds: int) -> Samples:
    """Seconds of switching flags. Every call finds the flags as a transition would."""
    hold = Hold(parameters, "benchmark")
    hold.watch(lambda: None)

    def after(prepare: Callable[[], object], call: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            prepare()
            return timed(call)()

        return once

    off, on = partial(set_flags, parameters, False), partial(set_flags, parameters, True)
    thaws = {"naive thaw": after(off, on), "our thaw": after(hold.take, hold.let_go)}
    freezes = {
        "naive freeze": after(on, off),
        "equal freeze": after(on, partial(freeze_equally, parameters)),
        "our freeze": lambda: _freeze_once(hold, on),
    }
    with no_collection():
        samples = interleave({**freezes, **thaws}, num_rounds)
    on()
    return samples


def _freeze_once(hold: Hold, on: Callable[[], object]) -> float:
    on()
    seconds = timed(hold.take)()
    hold.let_go()
    return seconds


def clocked(hook: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """A hook that notes what it takes."""

    def measured(*arguments: Any, **options: Any) -> Any:
        begin = cpu_seconds()
        result = hook(*arguments, **options)
        seconds.append(cpu_seconds() - begin)
        return result

    return measured


def our_fit(num_tensors: int) -> Timed:
    """Freeze and thaw by windows of one step; what the engine's hook takes at each."""
    seconds: list[float] = []
    network = Tensors(num_tensors)
    windows = [[step, step + 1] for step in range(1, 2 * NUM_SWITCHES, 2)]
    freezer = Freezer(name_starts_with=half_of_the_prefixes(network), windows=windows)

    def on_step(trainer: Any, module: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            engine: Any = Engine.of(trainer)
            engine.on_train_batch_start = clocked(engine.on_train_batch_start, seconds)

    fits.run(Fit(network, [freezer], steps=1 + 2 * NUM_SWITCHES), on_step)
    return {FREEZE: seconds[0::2], THAW: seconds[1::2]}


def lighter_fit(freezer: Any, num_tensors: int) -> Timed:
    """One freeze and one thaw, which is all that lighter's Freezer does in a run."""
    seconds: list[float] = []
    network = Tensors(num_tensors)
    prefixes = [f"network.{prefix}" for prefix in half_of_the_prefixes(network)]
    callback = freezer(name_starts_with=prefixes, until_step=1)
    callback.on_train_batch_start = clocked(callback.on_train_batch_start, seconds)
    fits.run(Fit(network, [callback], steps=2), lambda *_: None)
    return {LIGHTER_FREEZE: seconds[:1], LIGHTER_THAW: seconds[1:2]}


def fts_fit(scheduler: Any, num_tensors: int) -> Timed:
    """One thaw of half of the tensors."""
    seconds: list[float] = []
    network = Tensors(num_tensors)
    prefixes = tuple(f"network.{prefix}" for prefix in half_of_the_prefixes(network))
    names = [f"network.{name}" for name, _ in network.named_parameters()]
    half = [name for name in names if name.startswith(prefixes)]
    callback = peers.fts_in_phases(scheduler, [[HEAD], half], epochs_each=1)
    callback.step = clocked(callback.step, seconds)
    fits.run(Fit(network, [callback], fits.OTHER, steps=1, is_filtered=True), lambda *_: None)
    return {FTS: seconds[:1]}


def time_transitions(
    num_tensors: int, num_rounds: int, report: Report
) -> tuple[dict[str, float], dict[str, float]]:
    """Fits take turns.

    Returns:
        Seconds per kind of transition, and log lines per transition.
    """
    freezer, scheduler = peers.lighter_freezer(), peers.fts()
    seconds: Timed = {}
    lines: dict[str, float] = {}

    def keep(fit: Timed) -> None:
        for name, taken in fit.items():
            seconds.setdefault(name, []).append(median(taken))

    def ours() -> None:
        with fits.quiet() as count:
            fit = our_fit(num_tensors)
        keep(fit)
        lines["log lines per transition"] = count.num_lines / (2 * NUM_SWITCHES + 1)  # and one at the start

    def lighter() -> None:
        with fits.quiet(), peers.lighter_lines() as found:
            keep(lighter_fit(freezer, num_tensors))
        lines["lighter Freezer: log lines per transition"] = len(found) / 2
        lines["lighter Freezer: logged characters per transition"] = sum(map(len, found)) / 2

    def other() -> None:
        with fits.quiet("lightning.pytorch"):
            keep(fts_fit(scheduler, num_tensors))

    turns: list[Callable[[], None]] = [ours]
    for name, peer, turn in (("lighter Freezer", freezer, lighter), ("FTS", scheduler, other)):
        if peer is None:
            report.skip(name, "not installed")
        else:
            turns.append(turn)
    for _ in range(num_rounds):
        for turn in turns:
            with no_collection():
                turn()
        turns.reverse()
    return {name: median(taken) for name, taken in seconds.items()}, lines


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    network = Tensors(options.params)
    prefixes = half_of_the_prefixes(network)
    method = f"{options.params:,} tensors, {len(prefixes)} prefixes, CPU time, medians, paired ratios"
    report = Report("B3", "finding parameters and switching them", method)
    with fits.quiet():
        finding = time_finding(network, prefixes, options.rounds)
        half = list(ParameterSelector(prefixes=tuple(prefixes)).select(network).values())
        flags = time_flags(half, options.rounds)
    transitions, lines = time_transitions(options.params, options.fits, report)
    _add_finding(report, finding)
    _add_flags(report, flags)
    _add_transitions(report, transitions, flags)
    if options.set_ups:
        add_set_up(report, options.set_ups)
    for what, number in lines.items():
        report.add(what, number, "", 1.0 if what == "log lines per transition" else None, is_exact=True)
    return report


def _add_finding(report: Report, finding: Samples) -> None:
    report.add("named_parameters()", finding.median("walk") * 1e3, "ms")
    report.add("finding", finding.median("select") * 1e3, "ms")
    report.add("finding / named_parameters()", finding.ratio("select", "walk"), "x", 0.5)


def _add_flags(report: Report, flags: Samples) -> None:
    for name in ("naive freeze", "equal freeze", "our freeze", "naive thaw", "our thaw"):
        report.add(f"flags: {name}", flags.median(name) * 1e3, "ms")
    report.add("flags: freeze / naive floor", flags.ratio("our freeze", "naive freeze"), "x", 1.5)
    report.add("flags: freeze / equal floor", flags.ratio("our freeze", "equal freeze"), "x", 1.5)
    report.add("flags: thaw / naive floor", flags.ratio("our thaw", "naive thaw"), "x", 1.5)


def _add_transitions(report: Report, seconds: dict[str, float], flags: Samples) -> None:
    for name, taken in seconds.items():
        report.add(name, taken * 1e3, "ms", 1.5 if name in (FREEZE, THAW) else None)
    report.add(f"{FREEZE} / naive floor", seconds[FREEZE] / flags.median("naive freeze"), "x", 1.5)
    report.add(f"{THAW} / naive floor", seconds[THAW] / flags.median("naive thaw"), "x", 1.5)
    pairs = [(FREEZE, LIGHTER_FREEZE), (THAW, LIGHTER_THAW), (THAW, FTS)]
    for ours, theirs in pairs:
        if theirs in seconds:
            report.add(f"{ours} / {theirs}", seconds[ours] / seconds[theirs], "x", 0.01)
    if LIGHTER_FREEZE in seconds:
        bare = flags.median("our freeze") / seconds[LIGHTER_FREEZE]
        report.add(f"flags: our freeze / {LIGHTER_FREEZE}", bare, "x", 0.01)


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.switch", description=__doc__)
    options.add_argument("--params", type=int, default=15_000, metavar="N")
    options.add_argument("--rounds", type=int, default=41, help="of finding and of flags")
    options.add_argument("--fits", type=int, default=3, help="rounds of one fit each")
    options.add_argument("--set-ups", type=int, default=1, help="rounds of each set-up")
    return options


if __name__ == "__main__":
    main(run, parser())
