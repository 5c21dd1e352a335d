"""B7: graphs that a schedule of many phases makes, compiled by blocks and as a whole.

The backend runs graphs as they are: their number does not depend on it, and what is timed is tracing.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.measure import Report, main
from lighter_freezers import GPT, compile_blocks
from lighter_freezers.engine import ledger, parameters_of_blocks
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


def _gpt2(num_blocks: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 65, "n_layer": num_blocks, "n_embd": 32, "n_head": 2, "n_positions": 32}
    dropouts = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, bos_token_id=0, eos_token_id=0))


def _llama(num_blocks: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 65, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": num_blocks}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))


def _graphs(network: Any) -> int:
    """Graphs of all blocks, with nothing, half of them and all of them frozen."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compile_blocks(network, backend=counter)
    ids = torch.zeros(2, 32, dtype=torch.long)
    blocks = list(parameters_of_blocks(network).values())
    for num_frozen in (0, len(blocks) // 2, len(blocks)):
        held = [parameter for block in blocks[:num_frozen] for parameter in block]
        ledger.hold([*held, *network.get_input_embeddings().parameters()], HOLDER)
        network(input_ids=ids, labels=ids).loss.backward()
    return int(counter.frame_count)


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
    for title, network in {"GPT-2": _gpt2(options.layers), "Llama": _llama(options.layers)}.items():
        report.add(f"{title} of transformers by blocks: graphs", _graphs(network), "", 4, is_exact=True)
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
