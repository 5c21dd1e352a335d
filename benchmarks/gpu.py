"""B10: what no CPU shows: waits for the device, gain, memory, throughput, transitions, ranks and the cache.

It needs a CUDA card and ends with one sentence where there is none. Fits of a Trainer in bfloat16, GPT-2 of
transformers at 124 million parameters; wall time between two synchronisations; variants one after another,
each twice, of which the second counts. `--device cpu` runs the same code with tiny sizes, to try it.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import fits
from benchmarks.gpt_steps import Size
from benchmarks.measure import Report, main
from benchmarks.plain_gpt import PlainGPT
from lighter_freezers import (
    Freezer,
    FreezeStateLogger,
    GradientNormMonitor,
    LayerOperations,
    LoraRankScheduler,
    PrefixCache,
    apply_lora,
    compile_blocks,
)
from lighter_freezers.gpt import GPT, GPTConfig

__all__ = ["parser", "run"]

LARGE = Size(layers=12, width=768, heads=12, time=1024, batch=16, vocab=50_304)
TINY = Size(layers=4, width=32, heads=2, time=16, batch=2, vocab=64)
NONE = "No CUDA card here, so nothing was measured; `--device cpu` tries the same code with tiny sizes."


class Bench:
    """Fits of one size on one device."""

    def __init__(self, device: str, report: Report, num_steps: int) -> None:
        self.device, self.report, self.num_steps = device, report, num_steps
        self.size = LARGE if device == "cuda" else TINY
        self.half = ["transformer.wpe.", *(f"transformer.h.{n}." for n in range(self.size.layers // 2))]

    def network(self) -> nn.Module:
        """GPT-2 without dropout."""
        from transformers import GPT2Config, GPT2LMHeadModel

        size = self.size
        torch.manual_seed(0)
        sizes = {"n_positions": size.time, "n_embd": size.width, "n_layer": size.layers, "n_head": size.heads}
        calm = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
        return GPT2LMHeadModel(GPT2Config(vocab_size=size.vocab, **sizes, **calm))

    def seconds(
        self, callbacks: Sequence[Any], network: nn.Module | None = None, steps: int = 0
    ) -> list[float]:
        """The seconds of each step of a fit."""
        import pytorch_lightning as pl

        tokens = self.size.batch_of_tokens()[0].to(self.device)
        trained = self.network() if network is None else network
        seconds: list[float] = []

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = trained

            def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
                return self.network(input_ids=tokens, labels=tokens).loss  # type: ignore[no-any-return]

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)

        class Clock(pl.Callback):
            def on_train_start(self, *_: Any) -> None:
                self.begin = now()

            def on_train_batch_end(self, *_: Any) -> None:
                end = now()
                seconds.append(end - self.begin)
                self.begin = end

        with tempfile.TemporaryDirectory() as folder:
            pl.Trainer(
                accelerator="gpu" if self.device == "cuda" else "cpu",
                devices=1,
                max_steps=steps or self.num_steps,
                precision="bf16-mixed",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[*callbacks, Clock()],
                default_root_dir=folder,
            ).fit(Module(), fits.Steps(steps or self.num_steps))
        return seconds

    def steady(
        self, make: Callable[[], Sequence[Any]], network: Callable[[], nn.Module] | None = None
    ) -> float:
        """The median step of the second of two fits, the first steps left out."""
        found = [self.seconds(make(), None if network is None else network()) for _ in range(2)]
        return statistics.median(found[-1][self.num_steps // 3 :])


def now() -> float:
    """The time once the device has done what was queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> float:
    """MiB at most since the last call; 0 without a card."""
    if not torch.cuda.is_available():
        return 0.0
    most = torch.cuda.max_memory_allocated() / 2**20
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return most


def add_waits(bench: Bench) -> None:
    """How often a step waits for the device, beyond those of Lightning."""
    entry = {"name": "freeze_layer", "value": "attn.0", "trigger_loss": 0.0}
    cases: dict[str, tuple[float, Callable[[], list[Any]]]] = {
        "Freezer, FreezeStateLogger": (
            0,
            lambda: [Freezer(name_starts_with=bench.half), FreezeStateLogger()],
        ),
        "GradientNormMonitor, every 10": (2, lambda: [GradientNormMonitor(every_n_steps=10)]),
        "waiting for the loss": (2, lambda: [LayerOperations([entry], monitor="training_loss")]),
    }
    own = _waits(bench, [])
    for name, (most, make) in cases.items():
        bench.report.add(f"waits in 20 steps: {name}", _waits(bench, make()) - own, "", most, is_exact=True)


def _waits(bench: Bench, callbacks: list[Any]) -> int:
    """Warnings of torch about a synchronisation in the steps 10 to 29."""
    import pytorch_lightning as pl

    class Window(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if bench.device == "cuda":
                torch.cuda.set_sync_debug_mode("warn" if 10 <= batch_idx < 30 else "default")

    small, bench.size = bench.size, replace(TINY, time=32)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bench.seconds([*callbacks, Window()], steps=31)
    bench.size = small
    # the clock of each step waits, too, in every case alike
    return sum("synchroniz" in str(each.message) for each in said)


def add_gain(bench: Bench) -> None:
    """Time and memory with half of the blocks frozen, and what a transition takes."""

    def flags() -> nn.Module:
        network = bench.network()
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(bench.half)))
        return network

    peak()
    base = bench.steady(list)
    most = peak()
    alone, most_alone = bench.steady(list, flags), peak()
    ours, most_ours = (
        bench.steady(lambda: [Freezer(name_starts_with=bench.half, optimizer_state="free")]),
        peak(),
    )
    bench.report.add("half frozen: flags alone / nothing frozen", alone / base, "x")
    bench.report.add("half frozen: ours / nothing frozen", ours / base, "x", 0.78)
    bench.report.add("half frozen: ours / flags alone", ours / alone, "x", 0.92)
    bench.report.add("peak: nothing frozen", most, "MiB")
    bench.report.add("peak: flags alone", most_alone, "MiB")
    bench.report.add("peak: ours, state freed", most_ours, "MiB", 0.95 * most_alone)
    at = bench.num_steps - 2
    seconds = bench.seconds([Freezer(name_starts_with=bench.half[1:3], until_step=at)])
    calm = statistics.median(seconds[bench.num_steps // 3 : at])
    bench.report.add("a thaw: its step / a calm one, added", (seconds[at] - calm) * 1e3, "ms", 10.0)


def add_ranks(bench: Bench) -> None:
    """A change of all LoRA ranks, against a calm step."""
    at = bench.num_steps - 2
    network = apply_lora(bench.network(), {"r": 8, "target_modules": ["c_attn"]})
    schedule = [{"step": at, "rank_pattern": {f"attn.{n}": 16 for n in range(bench.size.layers)}}]
    seconds = bench.seconds([LoraRankScheduler(schedule=schedule)], network)
    calm = statistics.median(seconds[bench.num_steps // 3 : at])
    bench.report.add("all ranks from 8 to 16: added", (seconds[at] - calm) * 1e3, "ms", 50.0)


def add_throughput(bench: Bench) -> None:
    """A step of our GPT, of a plain one and of transformers'; ours compiled by blocks as well."""
    size = bench.size
    tokens, targets = (each.to(bench.device) for each in size.batch_of_tokens())
    sizes: dict[str, Any] = {"n_layer": size.layers, "n_head": size.heads, "n_embd": size.width}
    gpt = GPT(GPTConfig(**sizes, block_size=size.time, vocab_size=size.vocab)).to(bench.device)
    plain = PlainGPT(size.vocab, size.layers, size.width, size.heads, size.time).to(bench.device)
    peer: Any = bench.network().to(bench.device)
    seconds = {
        "plain": _step_seconds(bench, plain, lambda: plain(tokens, targets)),
        "ours": _step_seconds(bench, gpt, lambda: gpt.loss(tokens, targets)),
        "transformers": _step_seconds(bench, peer, lambda: peer(input_ids=tokens, labels=tokens).loss),
    }
    compile_blocks(gpt, backend="inductor" if bench.device == "cuda" else "eager")
    seconds["ours, compiled by blocks"] = _step_seconds(bench, gpt, lambda: gpt.loss(tokens, targets))
    for name, each in seconds.items():
        bench.report.add(f"throughput: {name}", size.batch * size.time / each, "tokens/s")
    bench.report.add("a step: ours / plain", seconds["ours"] / seconds["plain"], "x", 1.0)


def _step_seconds(bench: Bench, network: nn.Module, loss: Callable[[], Tensor]) -> float:
    optimizer, found = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True), []
    for _ in range(bench.num_steps):
        begin = now()
        with torch.autocast(bench.device, torch.bfloat16):
            value = loss()
        torch.autograd.backward(value)
        optimizer.step()
        optimizer.zero_grad()
        found.append(now() - begin)
    return statistics.median(found[bench.num_steps // 3 :])


def add_cache(bench: Bench) -> None:
    """A step whose frozen half is read from disk."""
    embeddings = ["transformer.wte.", *bench.half]
    plain = bench.steady(lambda: [Freezer(name_starts_with=embeddings)])
    with tempfile.TemporaryDirectory() as folder:
        cached = bench.steady(lambda: [Freezer(name_starts_with=embeddings), PrefixCache(folder)])
    bench.report.add("prefix cache, half of the blocks: later step / without", cached / plain, "x", 0.75)


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(NONE)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "a CPU, tiny sizes: no figures"
    report = Report(
        "B10", "what no CPU shows", f"{name}; {options.steps} steps, bfloat16, wall time, medians"
    )
    bench = Bench(options.device, report, options.steps)
    with fits.quiet():
        for add in (add_waits, add_gain, add_ranks, add_throughput, add_cache):
            add(bench)
    return report


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.gpu", description=__doc__)
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options.add_argument("--steps", type=int, default=26)
    return options


if __name__ == "__main__":
    main(run, parser())
