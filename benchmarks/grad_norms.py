"""B8: what a measurement of gradient norms by group and by layer costs.

The peer is the loop that is usually written: one `norm` and one `item()` per tensor, names sorted into groups
by patterns. The other peer is Lightning's `grad_norm`, which gives one norm per tensor. The limits are one
number from torch's `get_total_norm`, and `clip_grad_norm_` alone.
Counted are operators that torch dispatches and reads of the host; the loop reads once per tensor.
"""

import argparse
import math
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.host_reads import Traffic
from benchmarks.measure import Report, Samples, cpu_seconds, interleave, main, no_collection
from lighter_freezers.reports.gradients.norms import NormPlan

PLAN, LOOP, LIGHTNING, TOTAL = "ours", "peer: loop", "Lightning's grad_norm", "bare total norm"
CLIP, CLIP_AND_PLAN = "clipping alone", "clipping with ours"
PATTERNS = {
    "embed": re.compile("embed_tokens|wte|word_embeddings"),
    "lm_head": re.compile("lm_head"),
    "attention": re.compile("q_proj|k_proj|v_proj|o_proj"),
    "mlp": re.compile("gate_proj|up_proj|down_proj"),
}
LAYER = re.compile(r"(?:layers?|h)\.(\d+)\.")
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = {"self_attn": ATTENTION, "mlp": MLP}
PER_BLOCK = sum(map(len, PROJECTIONS.values()))
WARM_UP = 3


class Projections(nn.Module):
    """Tensors under the names of a Llama's projections, with gradients."""

    def __init__(self, num_tensors: int, num_elements: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_block(num_elements) for _ in range(round(num_tensors / PER_BLOCK)))
        for parameter in self.parameters():
            parameter.grad = torch.randn_like(parameter)


def _block(num_elements: int) -> nn.Module:
    block = nn.Module()
    for part, names in PROJECTIONS.items():
        module = nn.Module()
        for name in names:
            projection = nn.Module()
            projection.weight = nn.Parameter(torch.zeros(num_elements))
            setattr(module, name, projection)
        setattr(block, part, module)
    return block


def loop(model: nn.Module) -> dict[str, float]:
    """The peer: squares by group and by layer, read tensor by tensor."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or parameter.grad is None:
            continue
        square = parameter.grad.detach().norm(2).item() ** 2
        group = next((group for group, pattern in PATTERNS.items() if pattern.search(name)), None)
        layer = LAYER.search(name)
        keys = ["total", group, f"layer_{layer[1]}_{group}" if layer else None]
        for key in filter(None, keys):
            squares[key] = squares.get(key, 0.0) + square
    return {key: math.sqrt(square) for key, square in squares.items()}


def variants(model: nn.Module) -> dict[str, Callable[[], object]]:
    """What is timed. Clipping is at a norm that nothing reaches, so that all rounds see the same."""
    from pytorch_lightning.utilities import grad_norm

    parameters, plan = list(model.parameters()), NormPlan(model)

    def total() -> float:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).item()

    def clip() -> Tensor:
        return torch.nn.utils.clip_grad_norm_(parameters, 1e9)

    return {
        PLAN: plan.measure,
        LOOP: partial(loop, model),
        LIGHTNING: partial(grad_norm, model, norm_type=2),
        TOTAL: total,
        CLIP: clip,
        CLIP_AND_PLAN: partial(plan.clip, parameters, 1e9),
    }


def time_variants(num_tensors: int, num_elements: int, num_rounds: int) -> Samples:
    """Seconds per call."""

    def timed(call: Callable[[], object]) -> float:
        begin = cpu_seconds()
        call()
        return cpu_seconds() - begin

    calls = variants(Projections(num_tensors, num_elements))
    for _ in range(WARM_UP):
        for call in calls.values():
            call()
    with no_collection():
        return interleave({name: partial(timed, call) for name, call in calls.items()}, num_rounds)


def traffic(call: Callable[[], object]) -> tuple[int, int]:
    """Operators and reads of one call."""
    call()
    found = Traffic()
    found.step = 0
    with found, found.methods():
        call()
    return found.kernels[0], found.reads[0]


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    torch.set_num_threads(1)
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    method = (
        f"tensors x elements in float32, CPU time, medians of {options.rounds} rounds, paired ratios; counts"
    )
    report = Report("B8", "gradient norms by group and layer", method)
    calls = variants(Projections(shapes[0][0], 4))
    for name, targets in ((PLAN, (10.0, 1.0)), (LOOP, (None, None))):
        operators, reads = traffic(calls[name])
        report.add(f"{name}: operators", operators, "", targets[0], is_exact=True)
        report.add(f"{name}: reads of the host", reads, "", targets[1], is_exact=True)
    with_clip, alone = traffic(calls[CLIP_AND_PLAN])[0], traffic(calls[CLIP])[0]
    report.add("operators that clipping with ours adds", with_clip - alone, "", 0.0, is_exact=True)
    for num_tensors, num_elements in shapes:
        _add_times(report, num_tensors, num_elements, options.rounds)
    return report


def _add_times(report: Report, num_tensors: int, num_elements: int, num_rounds: int) -> None:
    samples, shape = (
        time_variants(num_tensors, num_elements, num_rounds),
        f"{num_tensors:,} x {num_elements:,}",
    )
    is_small = num_elements <= 4096  # where the tensors are large, all variants read the same memory
    report.add(f"{shape}: ours", samples.median(PLAN) * 1e3, "ms")
    report.add(f"{shape}: ours / loop", samples.ratio(PLAN, LOOP), "x", 0.35 if is_small else None)
    report.add(f"{shape}: ours / Lightning's grad_norm", samples.ratio(PLAN, LIGHTNING), "x")
    report.add(f"{shape}: ours / bare total norm", samples.ratio(PLAN, TOTAL), "x", 1.0)
    ratio = samples.ratio(CLIP_AND_PLAN, CLIP)
    report.add(f"{shape}: clipping with ours / clipping alone", ratio, "x", 1.05)


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.grad_norms", description=__doc__)
    shapes = ["308x1024", "1001x1024", "3003x1024", "308x147456", "154x589824"]  # seven tensors in a block
    options.add_argument("--shapes", nargs="+", default=shapes, metavar="TENSORSxELEMENTS")
    options.add_argument("--rounds", type=int, default=41)
    return options


if __name__ == "__main__":
    main(run, parser())
