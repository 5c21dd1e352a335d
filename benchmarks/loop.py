"""B2: what callbacks add to the steps of a real training loop, in microseconds per step.

One fit of a module that hardly computes anything has all callbacks at its start. From then on
`trainer.callbacks` changes every few steps between the variants: no callback, one and ten callbacks whose
one hook is empty, 1 and 10 Freezers of ours with the engine they share, 10 of lighter's Freezers. So a
drift of the machine hits all alike, and the first transition is over before the clock starts.
finetuning-scheduler, and the checkpoint callback that it adds itself, takes turns with no callback in a fit
of its own, since it knows the other Lightning namespace only. Added is the median of the differences to no
callback in the same round.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import fits, peers
from benchmarks.fits import Fit
from benchmarks.hooks import FAR, HEAD
from benchmarks.measure import Report, Samples, cpu_seconds, interleave, main, no_collection
from benchmarks.models import Tensors
from lighter_freezers import Freezer
from lighter_freezers.engine.engine import Engine

NUM_TENSORS = 150
WARM_UP = 30  # steps before the clock starts
NOTHING, NOOP, NOOPS, OURS, TEN = (
    "no callback",
    "1 empty callback",
    "10 empty callbacks",
    "1 Freezer",
    "10 Freezers",
)
GROUPS, THAWED, RATED = "11 groups by hand", "10 Freezers, thawed", "10 Freezers with a rate, thawed"
LIGHTER, FTS = "10 lighter Freezers", "finetuning-scheduler"

Callbacks = list[Any]
Variants = Callable[[Any], Mapping[str, Callbacks]]  # of a trainer whose callbacks are set up


def take_turns(fit: Fit, variants: Variants, num_variants: int, num_rounds: int, num_steps: int) -> Samples:
    """CPU seconds per step, by variant and round.

    Args:
        fit: With the callbacks of all variants.
        variants: Which of them are there in each variant.
        num_variants: How many variants these are.
        num_rounds: How often each variant has its turn.
        num_steps: Steps of one turn.
    """
    seconds: dict[str, list[float]] = {}
    turns: list[tuple[str, Callbacks]] = []  # in the order in which they come
    everything: Callbacks = []
    begin = 0.0

    def plan(trainer: Any) -> None:
        everything.extend(trainer.callbacks)
        order = list(variants(trainer).items())
        for _ in range(num_rounds):
            turns.extend(order)
            order.reverse()
        seconds.update({name: [] for name, _ in order})

    def on_step(trainer: Any, module: Any, batch_idx: int) -> None:
        nonlocal begin
        turn, steps_into_it = divmod(batch_idx - WARM_UP, num_steps)
        if trainer.current_epoch or batch_idx < WARM_UP or steps_into_it:
            return
        end = cpu_seconds()
        if not turn:
            plan(trainer)
        elif turn <= len(turns):
            seconds[turns[turn - 1][0]].append((end - begin) / num_steps)
        trainer.callbacks = turns[turn][1] if turn < len(turns) else everything
        begin = cpu_seconds()

    fit.steps = WARM_UP + num_rounds * num_variants * num_steps + 1
    with no_collection():
        fits.run(fit, on_step)
    return Samples(seconds)


def time_ours(freezer: Any | None, num_rounds: int, num_steps: int) -> Samples:
    """All that run in the namespace of lighter."""
    ours = [Freezer(name_starts_with=f"h.{block}.", until_step=FAR) for block in range(10)]
    empty = [fits.empty_callback(fits.OURS) for _ in range(10)]
    prefixes = [f"network.h.{block}." for block in range(10)] if freezer else []
    theirs = [freezer(name_starts_with=[prefix], until_step=FAR) for prefix in prefixes] if freezer else []

    def variants(trainer: Any) -> dict[str, Callbacks]:
        engine = Engine.of(trainer)
        chosen = {NOTHING: [], NOOP: empty[:1], NOOPS: empty}
        chosen |= {OURS: [ours[0], engine], TEN: [ours[0], engine, *ours[1:]]}
        return chosen | ({LIGHTER: theirs} if theirs else {})

    fit = Fit(Tensors(NUM_TENSORS), [*ours, *empty, *theirs])
    return take_turns(fit, variants, 6 if theirs else 5, num_rounds, num_steps)


def time_rates(num_rounds: int, num_steps: int) -> Samples:
    """CPU seconds per step, by who made the groups of the optimizer and who sets rates."""

    def fit(callbacks: Callbacks, num_groups: int = 1) -> Callable[[], float]:
        def once() -> float:
            times: list[float] = []
            run = Fit(Tensors(NUM_TENSORS), callbacks, steps=WARM_UP + num_steps + 1, num_groups=num_groups)
            fits.run(run, lambda *_: times.append(cpu_seconds()))
            return (times[-1] - times[WARM_UP]) / num_steps

        return once

    def freezers(**rate: float) -> Callbacks:
        return [Freezer(name_starts_with=f"h.{block}.", until_step=1, **rate) for block in range(10)]

    chosen = {
        NOTHING: fit([]),
        GROUPS: fit([], num_groups=11),
        THAWED: fit(freezers()),
        RATED: fit(freezers(unfreeze_lr_factor=0.1)),
    }
    with no_collection():
        return interleave(chosen, num_rounds)


def time_fts(scheduler: Any, num_rounds: int, num_steps: int) -> Samples:
    """finetuning-scheduler in a phase that lasts for the whole fit."""
    callback = peers.fts_in_phases(scheduler, [[HEAD]], epochs_each=1)
    fit = Fit(Tensors(NUM_TENSORS), [callback], fits.OTHER, is_filtered=True)

    def variants(trainer: Any) -> dict[str, Callbacks]:
        return {NOTHING: [], FTS: list(trainer.callbacks)}

    return take_turns(fit, variants, 2, num_rounds, num_steps)


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    method = f"{options.rounds} turns of {options.steps} steps each, CPU time, paired differences"
    report = Report("B2", "cost of callbacks per step of a training loop", method)
    freezer, scheduler = peers.lighter_freezer(), peers.fts()
    with fits.quiet():
        samples = time_ours(freezer, options.rounds, options.steps)
        _add(report, samples)
        _add(report, time_rates(options.fits, options.steps * 20), " (fits in turn)")
        if freezer is None:
            report.skip(LIGHTER, "not installed")
        if scheduler is None:
            report.skip(FTS, "not installed")
        else:
            _add(report, time_fts(scheduler, options.rounds, options.steps), " (lightning.pytorch)")
    _judge(report, samples)
    return report


def _add(report: Report, samples: Samples, where: str = "") -> None:
    report.add(f"{NOTHING}{where}: a step", samples.median(NOTHING) * 1e6, "us")
    for name in samples.seconds:
        if name != NOTHING:
            report.add(f"{name}: added", samples.added(name, NOTHING) * 1e6, "us")


def _judge(report: Report, samples: Samples) -> None:
    ours, noop = samples.added(TEN, NOTHING), samples.added(NOOP, NOTHING)
    report.add(f"{TEN} / {NOOP}, both added", ours / noop, "x", 1.0)
    if LIGHTER in samples.seconds:
        report.add(f"{TEN} / {LIGHTER}, both added", ours / samples.added(LIGHTER, NOTHING), "x", 0.1)


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.loop", description=__doc__)
    options.add_argument("--steps", type=int, default=10, help="of one turn")
    options.add_argument("--rounds", type=int, default=200, help="turns of each variant")
    options.add_argument("--fits", type=int, default=9, help="fits with and without rates")
    return options


if __name__ == "__main__":
    main(run, parser())
