"""B16: what policies need, counted: optimizer state, gradients, kept activations and FLOPs of a step.

Each way trains the same small GPT with AdamW in a real Trainer. Bytes are the peak over the run, FLOPs the
mean over its steps. LoRA has as many trainable parameters as one block and as two.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from benchmarks import fits
from benchmarks.measure import Report, main
from lighter_freezers import (
    GPT,
    AutoFreeze,
    BlockCycling,
    FreezeOut,
    Freezer,
    Lisa,
    Misa,
    Spectrum,
    apply_lora,
)
from lighter_freezers.engine import Engine, Transition
from lighter_freezers.planning.phase_meter import PhaseMeter

__all__ = ["WAYS", "Costs", "Way", "parser", "run", "trainer"]

TARGETS = ["c_attn", "c_proj", "c_fc"]


@dataclass(frozen=True)
class Way:
    """How a GPT is trained.

    Attributes:
        name: What tables call it.
        callbacks: Of a run of so many steps, on so many blocks.
        share: LoRA with as many trainable parameters as so many blocks; None without LoRA.
    """

    name: str
    callbacks: Callable[[int, int], list[Any]] = lambda num_steps, num_blocks: []
    share: int | None = None

    def prepared(self, network: nn.Module, width: int) -> nn.Module:
        """The network, with LoRA if this way has it."""
        if self.share is None:
            return network
        rank = self.share * 12 * width**2 // (16 * width * len(network.transformer.h))  # type: ignore[union-attr, arg-type]
        return apply_lora(network, {"r": rank, "target_modules": TARGETS})


def _window(num_steps: int) -> int:
    return max(1, num_steps // 15)


WAYS = (
    Way("full training"),
    Way("LoRA of 1 block's size", share=1),
    Way("LoRA of 2 blocks' size", share=2),
    Way(
        "last 2 blocks",
        lambda num_steps, num_blocks: [
            Freezer(patterns=["layers:embeddings", f"layers:block.0-{num_blocks - 3}"])
        ],
    ),
    Way("Lisa, 2 blocks", lambda num_steps, _: [Lisa(2, _window(num_steps))]),
    Way("Lisa, 2 blocks, rest frozen", lambda num_steps, _: [Lisa(2, _window(num_steps), rest="freeze")]),
    Way("BlockCycling", lambda num_steps, blocks: [BlockCycling(max(1, num_steps // (2 * blocks)))]),
    Way(
        "BlockCycling, state kept",
        lambda num_steps, blocks: [BlockCycling(max(1, num_steps // (2 * blocks)), optimizer_state="keep")],
    ),
    Way("AutoFreeze", lambda num_steps, _: [AutoFreeze(max(1, num_steps // 10))]),
    Way("FreezeOut", lambda num_steps, _: [FreezeOut(num_steps, every_n_steps=max(1, num_steps // 60))]),
    Way("Misa, 20 %", lambda num_steps, _: [Misa(0.2, _window(num_steps))]),
    Way("Spectrum, 25 %", lambda num_steps, _: [Spectrum(25)]),
)


class Costs(pl.Callback):
    """Measures one step of each phase, as `PhaseRecorder` does, and adds the phases up."""

    def __init__(self) -> None:
        self._meter = PhaseMeter(0, measures_equal_once=True)
        self.num_steps = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            Engine.of(trainer).add_listener(self)

    def on_transition(self, trainer: Any, pl_module: Any, transition: Transition) -> None:
        """A phase begins."""
        self._meter.begin(pl_module, transition)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._meter.start_batch(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._meter.see_gradients(pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._meter.end_batch(trainer, batch_idx)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._meter.end()
        self.num_steps = trainer.global_step

    @property
    def flops(self) -> int:
        """Of the whole run."""
        records = self._meter.records
        ends = [*(record.optimizer_step for record in records[1:]), self.num_steps]
        spans = [end - record.optimizer_step for record, end in zip(records, ends, strict=True)]
        return sum((record.flops or 0) * span for record, span in zip(records, spans, strict=True))

    def peak(self, what: str) -> int:
        """Bytes of `optimizer`, `gradient` or `activation`."""
        return max(getattr(record, f"{what}_bytes") or 0 for record in self._meter.records)


class _Tokens(pl.LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        return self.network(batch[:, :-1], batch[:, 1:])[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1.0e-3)


def trainer(num_steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    """A Trainer that only trains."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=num_steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )


def costs_of(way: Way, options: argparse.Namespace) -> Costs:
    """Train a GPT in one way."""
    torch.manual_seed(0)
    sizes = {"n_layer": options.layers, "n_embd": options.width, "n_head": 4, "block_size": options.tokens}
    network = way.prepared(GPT({**sizes, "vocab_size": 512, "tie_weights": False}), options.width)
    batches = torch.randint(512, (options.steps * options.batch, options.tokens + 1))
    costs = Costs()
    trainer(options.steps, *way.callbacks(options.steps, options.layers), costs).fit(
        _Tokens(network),
        torch.utils.data.DataLoader(batches, batch_size=options.batch),  # type: ignore[arg-type]
    )
    return costs


def run(options: argparse.Namespace, ways: Sequence[Way] = WAYS) -> Report:
    """Count."""
    torch.set_num_threads(1)
    method = (
        f"GPT of {options.layers} blocks of width {options.width}, untied, fp32, AdamW, {options.batch} x "
        f"{options.tokens} tokens, {options.steps} steps; bytes are the peaks, FLOPs the mean of a step"
    )
    report = Report("B16", "What policies need", method)
    with fits.quiet():
        for way in ways:
            costs = costs_of(way, options)
            report.add(
                f"{way.name}: FLOPs of a step", costs.flops / costs.num_steps / 1e6, "M", is_exact=True
            )
            for what, title in (
                ("optimizer", "optimizer state"),
                ("gradient", "gradients"),
                ("activation", "activations"),
            ):
                report.add(f"{way.name}: {title}", costs.peak(what) / 2**10, "KiB", is_exact=True)
    return report


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser("benchmarks.policy_costs", description=__doc__)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--width", type=int, default=128)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--steps", type=int, default=60)
    return options


if __name__ == "__main__":
    main(run, parser())
