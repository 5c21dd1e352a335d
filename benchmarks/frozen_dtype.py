"""B19: what a step costs whose frozen prefix computes in bfloat16 below a float32 rest, and what it changes.

Fits of the GPT with `Freezer(frozen_dtype="bf16")` and without take turns. On a CPU without instructions for
bfloat16 it loses by far; the table names the CPU.
"""

import argparse
import statistics
from functools import partial
from typing import Any

import torch

from benchmarks import fits
from benchmarks.measure import Report, cpu_seconds, interleave, main, no_collection
from lighter_freezers import GPT, Freezer

__all__ = ["parser", "run"]

TARGETS = {3: 0.88, 5: 0.65}  # of 6 blocks: a step, against one in float32
MOST_OFF = 1e-2  # relative difference of a loss


def fit(options: argparse.Namespace, num_frozen: int, losses: list[float], **half: Any) -> float:
    """Seconds of a step; the losses are added to a list."""
    import pytorch_lightning as pl

    torch.manual_seed(0)
    sizes = {"n_layer": options.layers, "n_embd": options.width, "n_head": 6, "block_size": options.time}
    seconds: list[float] = []

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = GPT({**sizes, "vocab_size": 65})

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.begin = cpu_seconds()
            ids = torch.randint(65, (options.batch, options.time))
            return self.network(ids, ids)[1]

        def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
            seconds.append(cpu_seconds() - self.begin)
            losses.append(float(outputs["loss"]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], fused=True)

    names = [f"network.transformer.{part}" for part in ("wte", "wpe")]
    names += [f"network.transformer.h.{number}." for number in range(num_frozen)]
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    with fits.quiet(), no_collection():
        freezer = Freezer(name_starts_with=names, **half)
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[freezer], **quiet)
        trainer.fit(Module(), fits.Steps(options.steps))
    return statistics.median(seconds[1:])


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    instructions = torch.backends.cpu.get_cpu_capability()
    method = (
        f"GPT of {options.layers} x {options.width}, T={options.time}, {options.batch} rows a batch, "
        f"{options.steps} steps, {instructions}; CPU time, one thread, paired ratios"
    )
    report = Report("B19", "A frozen prefix in bfloat16", method)
    for num_frozen in (options.layers // 2, options.layers - 1):
        losses: dict[str, list[float]] = {"whole": [], "half": []}
        whole = partial(fit, options, num_frozen, losses["whole"])
        half = partial(fit, options, num_frozen, losses["half"], frozen_dtype="bf16")
        ratio = interleave({"whole": whole, "half": half}, options.rounds).ratio("half", "whole")
        off = max(abs(a - b) / b for a, b in zip(losses["half"], losses["whole"], strict=True))
        target = TARGETS.get(num_frozen) if options.layers == 6 else None
        title = f"{num_frozen} of {options.layers} blocks"
        report.add(f"{title}: step / in float32", ratio, "x", target)
        report.add(f"{title}: loss, relative difference", off, "", MOST_OFF, is_exact=True)
    return report


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser("benchmarks.frozen_dtype", description=__doc__)
    options.add_argument("--layers", type=int, default=6)
    options.add_argument("--width", type=int, default=192)
    options.add_argument("--time", type=int, default=128)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--rounds", type=int, default=2)
    return options


if __name__ == "__main__":
    main(run, parser())
