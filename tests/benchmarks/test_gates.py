"""What the benchmarks promise and does not depend on the machine; ratios of times only loosely."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fits, hooks, host_reads, imports, logging_cost, loop, switch
from benchmarks.fits import Fit
from benchmarks.measure import Report, Samples
from benchmarks.models import Tensors, half_of_the_prefixes

SLACK = 2.0  # times the target: these are ratios of times
REPETITIONS = 3


def num_calls_in_step(num_freezers: int, num_tensors: int) -> int:
    """Python and C functions that all our callbacks of a Trainer call in one step without a change."""
    network, counts = Tensors(num_tensors), []
    per_step = logging_cost.PER_STEP_HOOKS

    def then(live: Sequence[tuple[Any, Any]]) -> None:
        trainer, module = live[0]
        hooked = [getattr(callback, hook) for callback in trainer.callbacks for hook in per_step]
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            for hook in hooked:
                if hook is not None:
                    hook(trainer, module, None, 1)
        finally:
            sys.setprofile(None)
        counts.append(calls - 1)  # setprofile itself

    with fits.quiet():
        fits.alive([Fit(network, hooks.freezers(num_freezers, network))], then)
    return counts[0]


def best_of(measure: Callable[[], Samples], name: str, base: str) -> float:
    """The least ratio of a few repetitions: load can only make it worse."""
    return min(measure().ratio(name, base) for _ in range(REPETITIONS))


def test_a_step_without_a_change_calls_one_function() -> None:
    """The engine's hook, and nothing in it; Freezers have no hook per step."""
    assert num_calls_in_step(1, 150) == 1


@pytest.mark.parametrize(("num_freezers", "num_tensors"), [(1, 15_000), (100, 150)])
def test_a_step_is_flat_in_tensors_and_in_freezers(num_freezers: int, num_tensors: int) -> None:
    """As many function calls at 15,000 tensors as at 150, and for 100 Freezers as for one."""
    assert num_calls_in_step(num_freezers, num_tensors) == num_calls_in_step(1, 150)


@pytest.mark.parametrize("num_tensors", [150, 1_500])
def test_a_transition_logs_one_line(num_tensors: int) -> None:
    """Whatever the number of tensors; one more says what is frozen at the start."""
    with fits.quiet() as count:
        switch.our_fit(num_tensors)

    assert count.num_lines == 2 * switch.NUM_SWITCHES + 1


def test_no_event_between_transitions(tmp_path: Path) -> None:
    """TensorBoard's files hold points at transitions, one step before them, and at the ends; nothing else."""
    with fits.quiet():
        logging_cost.time_transitions(150, num_periods=2, num_naive=0, folder=tmp_path)
    steps = logging_cost.events(tmp_path / "ours")

    assert logging_cost.transition_steps(2) <= set(steps)
    assert logging_cost.steady_events(steps, 2) == 0


def test_an_event_between_transitions_is_seen() -> None:
    """The count itself."""
    assert logging_cost.steady_events([0, 3, 15], num_periods=2) == 1


def test_the_hook_is_cheap() -> None:
    """At most twice the target: four empty hooks, and two fifths of lighter's Freezer."""
    chosen = [hooks.noop_variant(), hooks.our_variant(1, 150)]
    with fits.quiet():
        ratio = best_of(partial(hooks.time_blocks, chosen, 2_000, 21), hooks.ours(1, 150), hooks.NOOP)

    assert ratio <= SLACK * 2.0


@pytest.mark.parametrize("average_over", [3, 10])
def test_the_host_reads_the_loss_once_per_block(average_over: int) -> None:
    """And not between, nor after the last operation; a callback that reads each loss is seen."""
    arguments = ["--steps", "32", "--average-over", str(average_over), "--calls", "10", "--rounds", "1"]
    report = host_reads.run(host_reads.parser().parse_args(arguments))

    assert [row for row in report.rows if row.is_exact and row.is_met is False] == []
    assert report.value("waiting for the loss") == 31 // average_over
    assert report.value("peer: loss.item() at each step") == 31


def test_finding_is_cheaper_than_a_walk() -> None:
    """At most twice the target of half a walk over `named_parameters()`."""
    network = Tensors(15_000)
    prefixes = half_of_the_prefixes(network)

    assert best_of(partial(switch.time_finding, network, prefixes, 3), "select", "walk") <= SLACK * 0.5


def test_ten_freezers_cost_little_per_step() -> None:
    """At most twice the target of one empty callback."""
    with fits.quiet():
        samples = [loop.time_ours(None, 15, 10) for _ in range(REPETITIONS)]
    ratios = [one.added(loop.TEN, loop.NOTHING) / one.added(loop.NOOP, loop.NOTHING) for one in samples]

    assert min(ratios) <= SLACK * 1.0


@pytest.mark.wide  # tests/contracts/test_imports.py asks for the same sets
def test_imports_load_no_strangers() -> None:
    """The package nothing, the GPT torch, the Freezer both Lightnings."""
    report = Report("B13", "", "")
    imports.add_modules(report, imports.Fresh())

    assert [row for row in report.rows if not row.is_met] == []
