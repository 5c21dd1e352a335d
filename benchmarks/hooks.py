"""B1: what a callback does at a step at which nothing changes, in nanoseconds of its hook's body.

All variants are inside real fits that are alive at the same time: 1 and 100 Freezers of ours at 150, 1,500
and 15,000 tensors (what runs is the one engine of the Trainer), lighter's Freezer, and
`on_before_zero_grad` of finetuning-scheduler, which is what it does per step. Blocks of 2,000 calls take
turns. A call contains the loop around it, for all variants alike. What Lightning spends to call a hook at
all is B2.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from benchmarks import fits, peers
from benchmarks.fits import Fit
from benchmarks.measure import Report, Samples, cpu_seconds, interleave, main, no_collection
from benchmarks.models import NUM_BLOCKS, Tensors
from lighter_freezers import Freezer
from lighter_freezers.engine.engine import Engine

Hook = Callable[[], Any]
Variant = tuple[str, Fit, Callable[[Any, Any], Hook]]  # name, fit, and the call to measure in it

FAR = 10**9  # a step that no benchmark reaches
HEAD = "network.head"
NOOP, LIGHTER, FTS = "empty hook", "lighter Freezer", "finetuning-scheduler on_before_zero_grad"


def ours(num_freezers: int, num_tensors: int) -> str:
    """The name of a variant."""
    return f"{num_freezers} Freezer{'s' * (num_freezers > 1)}, {num_tensors:,} tensors"


def freezers(number: int, network: Tensors) -> list[Freezer]:
    """Freezers on whole blocks, each with an end of its own that never comes."""
    blocks = [index for index in range(NUM_BLOCKS) if next(network.h[index].parameters(), None) is not None]
    return [
        Freezer(name_starts_with=f"h.{blocks[index % len(blocks)]}.", until_step=FAR + index)
        for index in range(number)
    ]


def our_variant(num_freezers: int, num_tensors: int) -> Variant:
    """Freezers that hold, and wait for an end far away."""
    network = Tensors(num_tensors)

    def hook(trainer: Any, module: Any) -> Hook:
        return partial(Engine.of(trainer).on_train_batch_start, trainer, module, None, 1)

    return ours(num_freezers, num_tensors), Fit(network, freezers(num_freezers, network)), hook


def rates_variant(num_freezers: int) -> Variant:
    """What Freezers that set a rate add to each optimizer step: two looks whether other code has moved it."""
    network = Tensors(1_500)
    rated = [
        Freezer(name_starts_with=f"h.{index}.", until_step=0, unfreeze_lr_factor=0.1)
        for index in range(num_freezers)
    ]

    def hook(trainer: Any, module: Any) -> Hook:
        [optimizer] = trainer.optimizers
        [check] = optimizer._optimizer_step_pre_hooks.values()
        return partial(_step, check, optimizer)

    return f"{num_freezers} rate{'s' * (num_freezers > 1)} looked at", Fit(network, rated), hook


def _step(check: Any, optimizer: Any) -> None:
    """What is done before a step and after its closure, of which the batch is left out."""
    (_, closure), _ = check(optimizer, (optimizer, _compute_nothing), {})
    closure()


def _compute_nothing() -> None:
    pass


def noop_variant() -> Variant:
    """The floor: a callback of Lightning whose hook is empty."""
    callback = fits.empty_callback(fits.OURS)
    fit = Fit(Tensors(150), [callback])
    return (
        NOOP,
        fit,
        lambda trainer, module: partial(callback.on_train_batch_start, trainer, module, None, 1),
    )


def lighter_variant(freezer: Any, num_tensors: int) -> Variant:
    """Lighter's Freezer while it holds."""
    callback = freezer(name_starts_with=["network.h.0."], until_step=FAR)
    fit = Fit(Tensors(num_tensors), [callback])
    return (
        f"{LIGHTER}, {num_tensors:,} tensors",
        fit,
        lambda trainer, module: partial(callback.on_train_batch_start, trainer, module, None, 1),
    )


def fts_variant(scheduler: Any, num_tensors: int) -> Variant:
    """finetuning-scheduler in its first phase."""
    network = Tensors(num_tensors)
    names = [f"network.{name}" for name, _ in network.named_parameters()]
    callback = peers.fts_in_phases(
        scheduler, [[HEAD], [name for name in names if name != HEAD]], epochs_each=1
    )
    fit = Fit(network, [callback], fits.OTHER, is_filtered=True)

    def hook(trainer: Any, module: Any) -> Hook:
        return partial(callback.on_before_zero_grad, trainer, module, trainer.optimizers[0])

    return f"{FTS}, {num_tensors:,} tensors", fit, hook


def variants(num_tensors: Sequence[int], report: Report) -> list[Variant]:
    """All variants that can run here."""
    few, many = min(num_tensors), max(num_tensors)
    chosen = [noop_variant(), *(our_variant(1, number) for number in num_tensors)]
    chosen += [our_variant(100, number) for number in dict.fromkeys((few, many))]
    chosen += [rates_variant(1), rates_variant(50)]
    freezer, scheduler = peers.lighter_freezer(), peers.fts()
    if freezer is None:
        report.skip(LIGHTER, "not installed")
    else:
        chosen += [lighter_variant(freezer, number) for number in dict.fromkeys((few, many))]
    if scheduler is None:
        report.skip(FTS, "not installed")
    else:
        chosen.append(fts_variant(scheduler, few))
    return chosen


def time_blocks(chosen: Sequence[Variant], num_calls: int, num_rounds: int) -> Samples:
    """Seconds per call, by variant and round."""
    found: list[Samples] = []

    def block(hook: Hook) -> float:
        bare, times = hook.func, repeat(hook.args, num_calls)  # type: ignore[attr-defined]
        begin = cpu_seconds()
        for arguments in times:
            bare(*arguments)
        return (cpu_seconds() - begin) / num_calls

    def then(live: list[tuple[Any, Any]]) -> None:
        hooks = {name: hook(*pair) for (name, _, hook), pair in zip(chosen, live, strict=True)}
        with no_collection():
            interleave({name: partial(block, hook) for name, hook in hooks.items()}, 2)  # warm up
            found.append(interleave({name: partial(block, hook) for name, hook in hooks.items()}, num_rounds))

    fits.alive([fit for _, fit, _ in chosen], then)
    return found[0]


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    report = Report("B1", "hook body at a step without a change", _method(options))
    with fits.quiet():
        chosen = variants(options.params, report)
        samples = time_blocks(chosen, options.calls, options.rounds)
    for name, _, _ in chosen:
        report.add(name, samples.median(name) * 1e9, "ns")
    few, many = min(options.params), max(options.params)
    most = ours(1, many)
    report.add(f"{most} / {NOOP}", samples.ratio(most, NOOP), "x", 2.0)
    report.add(f"{most}, absolute", samples.median(most) * 1e9, "ns", 60.0)
    lighter = f"{LIGHTER}, {many:,} tensors"
    if lighter in samples.seconds:
        report.add(f"{most} / {LIGHTER}", samples.ratio(most, lighter), "x", 0.2)
    scheduler = f"{FTS}, {few:,} tensors"
    if scheduler in samples.seconds:
        report.add(f"{most} / finetuning-scheduler", samples.ratio(most, scheduler), "x")
    report.add(f"{many:,} tensors / {few:,} tensors", samples.ratio(most, ours(1, few)), "x", 1.05)
    report.add("100 Freezers / 1 Freezer", samples.ratio(ours(100, many), most), "x", 1.05)
    return report


def _method(options: argparse.Namespace) -> str:
    return f"{options.rounds} rounds of {options.calls:,} calls, CPU time, medians, paired ratios"


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.hooks", description=__doc__)
    options.add_argument("--params", type=int, nargs="+", default=[150, 1_500, 15_000], metavar="N")
    options.add_argument("--calls", type=int, default=2_000)
    options.add_argument("--rounds", type=int, default=301)
    return options


if __name__ == "__main__":
    main(run, parser())
