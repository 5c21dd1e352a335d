"""B18: what grows with a run: seconds against the number of tensors, Freezers, transitions, layers, windows.

Each curve doubles one number and keeps all others. What is drawn are CPU seconds, divided by those of the
smallest size; the line of a cost that grows as the number itself is drawn beside them.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import fits, hooks
from benchmarks.fits import Fit
from benchmarks.measure import Report, cpu_seconds, main, no_collection
from benchmarks.models import Tensors, half_of_the_prefixes
from lighter_freezers import BlockCycling, Freezer, FreezeStateLogger, Lisa, LoraRankScheduler, apply_lora

__all__ = ["CURVES", "draw", "parser", "run"]

NUM_SIZES = 5  # of a curve, each twice the one before
TWICE = 2.6  # the most that twice the size may cost
RANKS = {"r": 2, "target_modules": ["linear"]}


def tensors(number: int) -> float:
    """A fit in which half of the tensors are frozen for two steps."""
    network = Tensors(number)
    return seconds(network, [Freezer(name_starts_with=half_of_the_prefixes(network), until_step=2)])


def freezers(number: int) -> float:
    """A fit with so many Freezers on 2,000 tensors."""
    network = Tensors(2_000)
    return seconds(network, list(hooks.freezers(number, network)))


def transitions(number: int) -> float:
    """A fit in which another of 60 blocks trains at each step, with the curves and pictures of it."""
    from pytorch_lightning.loggers import TensorBoardLogger

    cycling = BlockCycling(every_n_steps=1, order="ascending", rest="train")
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        return seconds(Tensors(120), [cycling, FreezeStateLogger()], number, logger)


def windows(number: int) -> float:
    """A fit in which LISA draws two of 60 blocks at each step."""
    return seconds(Tensors(120), [Lisa(every_n_steps=1)], number)


def lora_layers(number: int) -> float:
    """A fit in which the rank of each of so many LoRA layers grows and shrinks."""
    network = nn.Module()
    network.h = nn.ModuleList(nn.ModuleDict({"linear": nn.Linear(4, 4)}) for _ in range(number))
    network.head = nn.Parameter(torch.zeros(1))
    adapted: Any = apply_lora(network, RANKS)
    adapted.head.requires_grad_(True)
    ranks = [{"step": step, "rank_pattern": {".*": rank}} for step, rank in ((1, 4), (2, 2))]
    return seconds(adapted, [LoraRankScheduler(ranks)], 4)


CURVES: Mapping[str, tuple[Callable[[int], float], int]] = {  # what, and the most of it
    "tensors": (tensors, 20_000),
    "Freezers": (freezers, 500),
    "transitions": (transitions, 5_000),
    "LoRA layers": (lora_layers, 1_000),
    "windows": (windows, 10_000),
}


def seconds(network: nn.Module, callbacks: Sequence[Any], num_steps: int = 4, logger: Any = False) -> float:
    """CPU time of a fit."""
    with fits.quiet(), no_collection():
        begin = cpu_seconds()
        fits.run(Fit(network, callbacks, steps=num_steps, logger=logger), lambda *_: None)
        return cpu_seconds() - begin


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    tensors(100)  # what is imported and built once is none of the first size
    method = f"CPU time of whole fits, the least of {options.rounds}, each size twice the one before"
    report = Report("B18", "What grows with a run", method)
    curves: dict[str, dict[int, float]] = {}
    for what, (measure, most) in CURVES.items():
        sizes = [max(2, int(most * options.scale)) >> shift for shift in reversed(range(NUM_SIZES))]
        curve = {size: min(measure(size) for _ in range(options.rounds)) for size in sizes if size}
        curves[what] = curve
        for size, took in curve.items():
            report.add(f"{size:,} {what}", 1000 * took, "ms")
        last, half = list(curve.values())[-1], list(curve.values())[-2]
        report.add(f"{what}: {sizes[-1]:,} / {sizes[-2]:,}", last / half, "x", TWICE)
    if options.plot is not None:
        draw(curves, options.plot)
    return report


def draw(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """One picture: by how much each number grew, and by how much the time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), dpi=120)
    longest: list[float] = []
    for (what, curve), marker in zip(curves.items(), itertools.cycle("osD^v"), strict=False):
        first, base = next(iter(curve.items()))
        grown = [size / first for size in curve]
        longest = max(longest, grown, key=len)
        axes.plot(
            grown,
            [took / base for took in curve.values()],
            marker=marker,
            label=f"{what}, {first:,} to {max(curve):,}",
        )
    axes.plot(longest, longest, color="grey", linestyle="--", label="as the number itself")
    axes.set(
        xscale="log", yscale="log", xlabel="size / smallest size", ylabel="CPU time / that of the smallest"
    )
    axes.set_xticks(longest, [f"{each:.0f}" for each in longest])
    axes.set_yticks(longest, [f"{each:.0f}" for each in longest])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser("benchmarks.growth", description=__doc__)
    options.add_argument("--scale", type=float, default=1.0, help="of all sizes")
    options.add_argument("--rounds", type=int, default=1, help="fits of each size")
    options.add_argument("--plot", type=Path, metavar="PNG", help="draw the curves into this file")
    return options


if __name__ == "__main__":
    main(run, parser())
