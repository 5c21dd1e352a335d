"""B7: graphs that a schedule of many phases makes, compiled by blocks and as a whole.

The backend runs graphs as they are: their number does not depend on it, and what is timed is tracing.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.measure import Report, main
from lighter_freezers import GPT, compile_blocks
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.backward_cut import GradientBoundary

__all__ = ["parser", "run", "unfreeze"]

HOLDER = "benchmark"


def gpt(num_blocks: int) -> GPT:
    """A small language model with a tied head."""
    torch.manual_seed(0)
    return GPT({"vocab_size": 65, "block_size": 32, "n_layer": num_blocks, "n_embd": 32, "n_head": 2})


def unfreeze(network: GPT, call: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Seconds for one phase more for each block, from the last to the first, with two steps in each."""
    x = torch.zeros(2, 32, dtype=torch.long)
    everything = [*network.transformer.h.parameters(), *network.transformer.wpe.parameters()]
    ledger.hold(everything, HOLDER)
    boundary, begin = GradientBoundary(network, is_silent=True), time.perf_counter()
    for block in reversed(network.transformer.h):
        ledger.release(block.parameters(), HOLDER)
        boundary.follow()
        for _ in range(2):
            call(x, x)[1].backward()
    seconds = time.perf_counter() - begin
    boundary.remove()
    ledger.release(everything, HOLDER)
    return seconds


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    torch.set_num_threads(1)
    report = Report(
        "B7",
        "Compiled models under a schedule",
        f"GPT of {options.layers} blocks, {options.layers} phases, backend eager, wall time",
    )
    seconds: dict[str, float] = {}
    for name in ("blocks", "whole"):
        torch._dynamo.reset()
        network, counter = gpt(options.layers), CompileCounterWithBackend("eager")
        is_whole = name == "whole"
        compiled: nn.Module = (
            torch.compile(network, backend=counter) if is_whole else compile_blocks(network, backend=counter)
        )
        seconds[name] = unfreeze(network, compiled)
        title = "as a whole" if is_whole else "by blocks"
        report.add(
            f"{title}: graphs", counter.frame_count, "", None if is_whole else 4, is_exact=not is_whole
        )
        report.add(f"{title}: seconds for all phases", seconds[name], "s")
    plain = gpt(options.layers)
    report.add("not compiled: seconds for all phases", unfreeze(plain, plain), "s")
    report.add("seconds by blocks / as a whole", seconds["blocks"] / seconds["whole"], "x", 0.1)
    torch._dynamo.reset()
    return report


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.compile", description=__doc__)
    options.add_argument("--layers", type=int, default=12)
    return options


if __name__ == "__main__":
    main(run, parser())
