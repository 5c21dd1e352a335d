"""B5: what a step costs once the output of its frozen prefix is read from disk instead of computed.

Fits of a Trainer, the same with and without `PrefixCache`. The first epoch fills the store; the others read
it. Rows that lose are measured too: rows that are never the same twice, and a prefix of one block.
"""

import argparse
import statistics
import tempfile
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import Report, Samples, cpu_seconds, interleave, main, no_collection
from lighter_freezers import Freezer, PrefixCache

__all__ = ["parser", "run"]

VOCAB = 65
TARGETS = {3: 0.75, 5: 0.42, 6: 0.04}  # of 6 blocks: a later step, against one without the cache
FIRST = 1.03
MOST_OFF = 1e-2  # relative difference of a loss with rows in bfloat16


class Fit:
    """One fit: the seconds of its steps, epoch by epoch, and its losses.

    Args:
        options: Of the command line.
        num_frozen: Blocks of the prefix.
        cache: Arguments of `PrefixCache`; None for a fit without one.
        is_masked: Whether each step masks other tokens.
    """

    def __init__(
        self, options: argparse.Namespace, num_frozen: int, cache: dict[str, Any] | None, is_masked: bool
    ) -> None:
        import pytorch_lightning as pl

        self.seconds: list[list[float]] = [[] for _ in range(options.epochs)]
        self.losses: list[float] = []
        module = _module(options, is_masked)
        names = [f"network.transformer.h.{number}." for number in range(num_frozen)]
        names += ["network.transformer.wte", "network.transformer.wpe"]
        with tempfile.TemporaryDirectory() as folder, no_collection():
            cached = [] if cache is None else [PrefixCache(folder, **cache)]
            trainer = pl.Trainer(
                accelerator="cpu",
                max_epochs=options.epochs,
                callbacks=[Freezer(name_starts_with=names), *cached, self._clock()],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            torch.manual_seed(1)
            rows = torch.randint(VOCAB, (options.batches * options.batch, options.time))
            trainer.fit(module, DataLoader(TensorDataset(rows), batch_size=options.batch, shuffle=True))

    def _clock(self) -> Any:
        import pytorch_lightning as pl

        fit = self

        class Clock(pl.Callback):
            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                self.begin = cpu_seconds()

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
                fit.seconds[trainer.current_epoch].append(cpu_seconds() - self.begin)
                fit.losses.append(float(outputs["loss"]))

        return Clock()

    @property
    def first(self) -> float:
        """A step of the first epoch, without the very first."""
        return statistics.median(self.seconds[0][1:])

    @property
    def later(self) -> float:
        """A step of the other epochs."""
        return statistics.median(sum(self.seconds[1:], []))


def _module(options: argparse.Namespace, is_masked: bool) -> Any:
    import pytorch_lightning as pl
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": options.layers, "n_embd": options.width, "n_head": 6, "n_positions": options.time}
    dropouts = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    tokens = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, **tokens))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            ids = batch[0]
            if is_masked:
                ids = torch.where(torch.rand(ids.shape) < 0.15, 0, ids)
            return self.network(input_ids=ids, labels=batch[0]).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], fused=True)

    return Module()


def _compare(
    options: argparse.Namespace, num_frozen: int, cache: dict[str, Any], is_masked: bool = False
) -> tuple[float, float, float]:
    """Ratios of a first and of a later step, and the largest relative difference of a loss."""
    fits: dict[str, list[Fit]] = {"plain": [], "cached": []}

    def later(name: str, arguments: dict[str, Any] | None) -> float:
        fits[name].append(Fit(options, num_frozen, arguments, is_masked))
        return fits[name][-1].later

    turns = {"plain": partial(later, "plain", None), "cached": partial(later, "cached", cache)}
    laters = interleave(turns, options.rounds)
    firsts = Samples({name: [fit.first for fit in each] for name, each in fits.items()})
    losses = zip(fits["plain"][0].losses, fits["cached"][0].losses, strict=True)
    off = max(abs(one - two) / abs(one) for one, two in losses)
    return firsts.ratio("cached", "plain"), laters.ratio("cached", "plain"), off


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    torch.set_num_threads(1)
    method = (
        f"GPT-2 of transformers, {options.layers} x {options.width}, T={options.time}, {options.batch} rows "
        f"a batch, {options.batches} batches an epoch, shuffled; CPU time, one thread, medians, paired ratios"
    )
    report = Report("B5", "A frozen prefix computed once", method)
    for num_frozen in (options.layers // 2, options.layers - 1, options.layers):
        title = f"{num_frozen} of {options.layers} blocks"
        target = TARGETS.get(num_frozen) if options.layers == 6 else None
        for dtype in ("float32", "bfloat16"):
            first, later, off = _compare(options, num_frozen, {"dtype": dtype})
            report.add(f"{title}, {dtype}: later step / without", later, "x", target)
            report.add(f"{title}, {dtype}: first epoch / without", first, "x", FIRST)
            bound = 0.0 if dtype == "float32" else MOST_OFF
            report.add(f"{title}, {dtype}: loss, relative difference", off, "", bound, is_exact=True)
    _, later, _ = _compare(options, 1, {})
    report.add(f"1 of {options.layers} blocks: later step / without", later, "x")
    _, later, _ = _compare(options, options.layers // 2, {}, is_masked=True)
    title = f"{options.layers // 2} of {options.layers} blocks, other tokens masked in each epoch"
    report.add(f"{title}: later step / without", later, "x")
    return report


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser("benchmarks.prefix_cache", description=__doc__)
    options.add_argument("--layers", type=int, default=6)
    options.add_argument("--width", type=int, default=192)
    options.add_argument("--time", type=int, default=128)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--batches", type=int, default=4)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--rounds", type=int, default=2)
    return options


if __name__ == "__main__":
    main(run, parser())
