"""B6: memory and optimizer step of a model that is nine tenths frozen, against one that has only the rest.

The rest alone is built from the same trainable blocks on inputs that are given. Bytes are those of tensors:
gradients, optimizer state, and what autograd keeps.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW

from benchmarks.measure import Report, cpu_seconds, interleave, main, no_collection
from lighter_freezers import get_memory_savings_estimate
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.lean_groups import LeanGroups
from lighter_freezers.planning.costs.step_cost import SavedBytes

__all__ = ["parser", "run"]

HOLDER = "benchmark"


class MeanSquare(nn.Module):
    """A loss, so that it counts as a part of the network."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A scalar."""
        return x.square().mean()


def blocks(options: argparse.Namespace) -> nn.Sequential:
    """A deep network of like blocks, and its loss."""
    torch.manual_seed(0)
    width = options.width
    return nn.Sequential(
        *(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            for _ in range(options.layers)
        ),
        MeanSquare(),
    )


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of tensors; anything else has none."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def needed_bytes(network: nn.Module, x: torch.Tensor, optimizer: AdamW) -> dict[str, int]:
    """Bytes of one step: activations, gradients, state."""
    saved = SavedBytes(network.parameters())
    with saved.counting():
        network(x).backward()
    gradients = tensor_bytes(parameter.grad for parameter in network.parameters())
    optimizer.step()
    state = tensor_bytes(value for each in optimizer.state.values() for value in each.values())
    optimizer.zero_grad()
    return {"activations": saved.peak, "gradients": gradients, "state": state}


def count_memory(options: argparse.Namespace, report: Report) -> None:
    """A run that froze nine tenths in the middle, against the rest alone, and against the estimate."""
    network = blocks(options)
    num_frozen = round(options.layers * 0.9)
    x = torch.randn(options.batch, options.width)
    optimizer = AdamW(network.parameters())
    whole = needed_bytes(network, x, optimizer)
    frozen = list(network[:num_frozen].parameters())
    ledger.hold(frozen, HOLDER)
    kept = needed_bytes(network, x, optimizer)
    LeanGroups([optimizer]).leave_out(frozen)
    lean = needed_bytes(network, x, optimizer)
    rest = blocks(options)[num_frozen:]
    alone = needed_bytes(rest, network[:num_frozen](x).detach(), AdamW(rest.parameters()))
    estimate = get_memory_savings_estimate(network, optimizer, x)
    for what in whole:
        report.add(f"{what}: nothing frozen", whole[what] / 2**20, "MiB")
        report.add(f"{what}: 90 % frozen, state kept", kept[what] / 2**20, "MiB")
        report.add(f"{what}: 90 % frozen, state freed", lean[what] / 2**20, "MiB")
    ratio = sum(lean.values()) / sum(alone.values())
    report.add("all three / a model of the trainable part alone", ratio, "x", 1.01, is_exact=True)
    errors = {"gradients": "gradient_bytes", "state": "optimizer_bytes", "activations": "activation_bytes"}
    for what, key in errors.items():
        error = abs(estimate[key] - lean[what]) / lean[what]
        report.add(
            f"estimate: error of {what}",
            100 * error,
            "%",
            5.0 if what == "activations" else 0.0,
            is_exact=True,
        )


def time_steps(options: argparse.Namespace, report: Report) -> None:
    """The optimizer's step over many small tensors, nine tenths of them frozen."""
    num_frozen = round(options.tensors * 0.9)
    variants: dict[str, AdamW] = {}
    for name in ("kept", "freed", "alone"):
        parameters = [Parameter(torch.zeros(16)) for _ in range(options.tensors)]
        sum(parameter.sum() for parameter in parameters).backward()  # type: ignore[union-attr]
        frozen = parameters[:num_frozen]
        optimizer = AdamW(parameters[num_frozen:] if name == "alone" else parameters, fused=True)
        optimizer.step()
        ledger.hold(frozen, HOLDER)
        if name == "freed":
            LeanGroups([optimizer]).leave_out(frozen)
        variants[name] = optimizer
    with no_collection():
        samples = interleave(_clocked(variants), options.rounds)
    title = f"optimizer step, {options.tensors} tensors, 90 % frozen"
    report.add(f"{title}: state kept / trainable ones alone", samples.ratio("kept", "alone"), "x")
    report.add(f"{title}: state freed / trainable ones alone", samples.ratio("freed", "alone"), "x", 1.05)


def _clocked(optimizers: Mapping[str, AdamW]) -> dict[str, Callable[[], float]]:
    def clocked(optimizer: AdamW) -> Callable[[], float]:
        def call() -> float:
            begin = cpu_seconds()
            for _ in range(20):
                optimizer.step()
            return cpu_seconds() - begin

        return call

    return {name: clocked(optimizer) for name, optimizer in optimizers.items()}


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    torch.set_num_threads(1)
    method = (
        f"{options.layers} blocks of width {options.width}, fp32, AdamW; bytes are counted; "
        "CPU time, one thread, medians, paired ratios"
    )
    report = Report("B6", "What a frozen model needs", method)
    count_memory(options, report)
    if options.rounds:
        time_steps(options, report)
    return report


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.freeze_memory", description=__doc__)
    options.add_argument("--layers", type=int, default=20)
    options.add_argument("--width", type=int, default=128)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--tensors", type=int, default=2000, help="of the timed optimizer")
    options.add_argument("--rounds", type=int, default=31, help="of optimizer steps; 0 counts bytes only")
    return options


if __name__ == "__main__":
    main(run, parser())
