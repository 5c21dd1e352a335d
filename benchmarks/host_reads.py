"""B12: how often the host reads a number from the device while an operation waits for the training loss.

Reads are counted, not timed: a read costs little on a CPU, but on a GPU it waits for all that was queued.
Counted are the operators that torch dispatches for `item()`, `float(...)`, `bool(...)` and `torch.equal`,
and calls of `tolist`, `cpu` and `numpy`, in real fits of a module that reads nothing by itself. The peer is
what a callback that watches the loss usually does: `loss.item()` at each step. Kernels are operators of any
kind.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import fits
from benchmarks.fits import Fit
from benchmarks.measure import Report, Samples, cpu_seconds, interleave, main, no_collection
from benchmarks.models import Tensors
from lighter_freezers import LayerOperations
from lighter_freezers.engine.engine import Engine

READING_OPERATORS = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "nonzero"})
READING_METHODS = ("tolist", "cpu", "numpy")
NEVER, AT_ONCE_LOW = -1.0, 1.0  # the loss of these fits is 0


class Traffic(TorchDispatchMode):
    """Reads and kernels by optimizer step; what comes before the first step has the number -1."""

    def __init__(self) -> None:
        super().__init__()
        self.step = -1
        self.reads: Counter[int] = Counter()
        self.kernels: Counter[int] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.kernels[self.step] += 1
        self.reads[self.step] += name in READING_OPERATORS
        return function(*args, **(kwargs or {}))

    @contextmanager
    def methods(self) -> Iterator[None]:
        """Count the methods that dispatch does not show, too."""
        before = {name: getattr(torch.Tensor, name) for name in READING_METHODS}

        def counted(name: str, tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            self.reads[self.step] += 1
            return before[name](tensor, *arguments, **options)

        for name in READING_METHODS:
            setattr(torch.Tensor, name, lambda *a, _name=name, **o: counted(_name, *a, **o))
        try:
            yield
        finally:
            for name, method in before.items():
                setattr(torch.Tensor, name, method)

    def reads_within(self, num_steps: int) -> int:
        """Reads while training, the last step left out: at the end Lightning and we look at what there is."""
        return sum(number for step, number in self.reads.items() if 0 <= step < num_steps - 1)


def waiting(trigger_loss: float, average_over: int) -> LayerOperations:
    """One operation that waits for the training loss."""
    entry = {"name": "freeze_layer", "value": "attn.0", "trigger_loss": trigger_loss}
    return LayerOperations([entry], monitor="training_loss", average_over=average_over)


def reading_callback() -> Any:
    """What users write by hand."""
    callback = fits.empty_callback(fits.OURS)
    callback.on_train_batch_end = lambda trainer, module, outputs, *_: outputs["loss"].item()
    return callback


def traffic(callbacks: list[Any], num_steps: int) -> Traffic:
    """Reads and kernels of a fit; the callbacks see each step before the next begins."""
    found = Traffic()

    def on_step(trainer: Any, module: Any, batch_idx: int) -> None:
        found.step = batch_idx

    with found, found.methods():
        fits.run(Fit(Tensors(150), callbacks, steps=num_steps), on_step)
    return found


def step_of_operation(average_over: int, num_steps: int) -> int:
    """The optimizer step at which an operation is done whose loss was low from the beginning."""
    callback, steps = waiting(AT_ONCE_LOW, average_over), []

    def on_step(trainer: Any, module: Any, batch_idx: int) -> None:
        if not steps and not next(module.network.h[0].attn.parameters()).requires_grad:
            steps.append(batch_idx)

    fits.run(Fit(Tensors(150), [callback], steps=num_steps), on_step)
    return int(steps[0])


def time_hook(average_over: int, num_calls: int, num_rounds: int) -> Samples:
    """Seconds per call of what runs at the end of a batch: while a loss is waited for, and the means too."""
    found: list[Samples] = []
    outputs = {"loss": torch.tensor(0.0)}

    def hook(trainer: Any, module: Any) -> Callable[[], object]:
        return partial(Engine.of(trainer).on_train_batch_end, trainer, module, outputs, None, 1)

    def block(call: Any) -> float:
        bare, times = call.func, repeat(call.args, num_calls)
        begin = cpu_seconds()
        for arguments in times:
            bare(*arguments)
        return (cpu_seconds() - begin) / num_calls

    def then(live: list[tuple[Any, Any]]) -> None:
        names = ("note", "note and mean")
        calls = {name: hook(*pair) for name, pair in zip(names, live, strict=True)}
        with no_collection():
            found.append(interleave({name: partial(block, call) for name, call in calls.items()}, num_rounds))

    long = 10 * num_calls * num_rounds  # a block that never ends
    fits.alive([Fit(Tensors(150), [waiting(NEVER, average)]) for average in (long, average_over)], then)
    return found[0]


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    steps, block = options.steps, options.average_over
    method = f"{steps} optimizer steps, means of {block} steps; counts; CPU time of {options.calls:,} calls"
    report = Report("B12", "reads of the host while an operation waits for the loss", method)
    with fits.quiet():
        bare, peer = traffic([], steps), traffic([reading_callback()], steps)
        pending = traffic([waiting(NEVER, block)], steps)
        done = traffic([waiting(AT_ONCE_LOW, block)], steps)
        latency = step_of_operation(block, steps)
        samples = time_hook(block, options.calls, options.rounds)
    _add_reads(report, {"bare": bare, "peer": peer, "pending": pending, "done": done}, options)
    report.add(
        "step of an operation whose loss was low from the start", latency, "", block + 2, is_exact=True
    )
    report.add("a batch while a loss is waited for", samples.median("note") * 1e9, "ns", 1000.0)
    report.add("the same, with its share of the means", samples.median("note and mean") * 1e9, "ns")
    return report


def _add_reads(report: Report, fits_: dict[str, Traffic], options: argparse.Namespace) -> None:
    steps, block = options.steps, options.average_over
    own = fits_["bare"].reads_within(steps)
    num_blocks = (steps - 1) // block
    after = {step for step in range(steps) if step % block == 0}  # the read is made before the step after
    reads = {name: each.reads_within(steps) - own for name, each in fits_.items()}
    stray = fits_["pending"].reads - fits_["bare"].reads
    between = sum(number for step, number in stray.items() if 0 <= step < steps - 1 and step not in after)
    kernels = fits_["pending"].kernels - fits_["bare"].kernels
    inside = max(kernels[step] for step in range(1, steps - 1) if step % block not in (0, block - 1))
    at_end = max(kernels[step] for step in range(block - 1, steps - 1, block))
    report.add("without a callback", own, "reads", 0.0, is_exact=True)
    report.add("peer: loss.item() at each step", reads["peer"], "reads", is_exact=True)
    report.add("waiting for the loss", reads["pending"], "reads", num_blocks, is_exact=True)
    report.add("of these, not in the step after a block", between, "reads", 0.0, is_exact=True)
    report.add("with the operation done after the first block", reads["done"], "reads", 1.0, is_exact=True)
    report.add("kernels added in a step inside a block", inside, "kernels", 0.0, is_exact=True)
    report.add("kernels added in the last step of a block", at_end, "kernels", is_exact=True)


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.host_reads", description=__doc__)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--average-over", type=int, default=10, metavar="STEPS")
    options.add_argument("--calls", type=int, default=2_000)
    options.add_argument("--rounds", type=int, default=41)
    return options


if __name__ == "__main__":
    main(run, parser())
