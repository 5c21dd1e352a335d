"""Rows of B3: CPU seconds to the first step with many Freezers, or with an optimizer of what trains."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks import fits
from benchmarks.fits import Fit
from benchmarks.hooks import FAR
from benchmarks.measure import Report, cpu_seconds
from benchmarks.models import Tensors, half_of_the_prefixes
from lighter_freezers import Freezer

Case = tuple[str, int, Callable[[Tensors], Sequence[Any]], bool]  # name, tensors, callbacks, is_filtered


def overlapping(number: int) -> Callable[[Tensors], list[Freezer]]:
    """Freezers that all select the same tensors, until different steps."""
    return lambda _: [Freezer(name_starts_with="h.0.", until_step=FAR + index) for index in range(number)]


def one_for_each_cell(number: int) -> Callable[[Tensors], list[Freezer]]:
    """Freezers in turn on every other cell."""

    def build(network: Tensors) -> list[Freezer]:
        cells = half_of_the_prefixes(network)
        return [
            Freezer(name_starts_with=cells[index % len(cells)], until_step=FAR + index)
            for index in range(number)
        ]

    return build


def half(network: Tensors) -> list[Freezer]:
    """One Freezer on half of the tensors."""
    return [Freezer(name_starts_with=half_of_the_prefixes(network), until_step=FAR)]


CASES: tuple[Case, ...] = (
    ("125 Freezers that overlap on 3,000 tensors", 3_000, overlapping(125), False),
    ("250 Freezers that overlap on 3,000 tensors", 3_000, overlapping(250), False),
    ("optimizer of requires_grad, 3,000 tensors", 3_000, half, True),
    ("optimizer of requires_grad, 6,000 tensors", 6_000, half, True),
    ("500 Freezers on 20,000 tensors", 20_000, one_for_each_cell(500), False),
)


def seconds_of(num_tensors: int, build: Callable[[Tensors], Sequence[Any]], is_filtered: bool) -> float:
    """CPU seconds from the call of `fit` to the first training step."""
    network, taken = Tensors(num_tensors), [0.0]
    fit = Fit(network, build(network), steps=1, is_filtered=is_filtered)
    begin = cpu_seconds()
    fits.run(fit, lambda *_: taken.append(cpu_seconds() - begin))
    return taken[1]


def add_set_up(report: Report, num_rounds: int) -> None:
    """Add a row for each case, and how each grows."""
    added = {}
    with fits.quiet():
        seconds_of(CASES[2][1], half, True)  # a warm-up
    for name, num_tensors, build, is_filtered in CASES:
        rounds = []
        for _ in range(num_rounds):
            with fits.quiet():
                bare = seconds_of(num_tensors, lambda _: [], is_filtered)
                rounds.append(seconds_of(num_tensors, build, is_filtered) - bare)
        added[name] = median(rounds)
        report.add(f"set-up: {name}", added[name], "s", 3.0 if name.startswith("500") else None)
    for (few, *_), (many, *_) in (CASES[0:2], CASES[2:4]):
        report.add(f"set-up: {many} / half as many", added[many] / added[few], "x", 3.0)
