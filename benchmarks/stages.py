"""B17: three stages of fine-tuning a BERT, against finetuning-scheduler.

A BERT of transformers with random weights, on CPU: the classifier trains first, then the upper half of the
blocks, too, then everything. Both packages run in fits of `lightning.pytorch` on the same batches, in turns.
A transition is the CPU time between the last step of an epoch and the first of the next where a stage begins,
less that of the same fit without a callback. Drift is the largest difference between the weights of two gloo
ranks after the run.
"""

import argparse
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.multiprocessing as mp

from benchmarks import peers
from benchmarks.fits import quiet
from benchmarks.measure import Report, cpu_seconds, interleave, main
from lighter_freezers import GradualUnfreezing

__all__ = ["drift", "measure", "parser", "run"]

NUM_STAGES, EPOCHS_EACH = 3, 2
OURS, FTS, BARE = "GradualUnfreezing", "FinetuningScheduler", "no callback"


class Batches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random sentences with random labels."""

    def __init__(self, num_rows: int, length: int = 32) -> None:
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(100, (num_rows, length), generator=generator)
        self._labels = torch.randint(2, (num_rows,), generator=generator)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids[row], "labels": self._labels[row]}


def bert(width: int, num_layers: int) -> Any:
    """A classifier of transformers, without dropout, so that ranks differ by nothing but their rows."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 4}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(
        BertConfig(vocab_size=100, num_hidden_layers=num_layers, max_position_embeddings=64, **sizes, **off)
    )


def module_of(network: Any, *, is_filtered: bool, seen: list[float]) -> Any:
    """The LightningModule; `seen` gets the CPU clock at each step, before and after it."""
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen.append(cpu_seconds())

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.network(**batch).loss

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(cpu_seconds())

        def configure_optimizers(self) -> Any:
            parameters = [p for p in self.parameters() if p.requires_grad or not is_filtered]
            return torch.optim.AdamW(parameters, lr=1e-3)

    return Module()


def callbacks_of(name: str, num_layers: int) -> list[Any]:
    """What plays the stages in one of the packages."""
    upper = range(num_layers // 2, num_layers)
    if name == BARE:
        return []
    if name == OURS:
        blocks = [f"network.bert.encoder.layer.{index}" for index in upper]
        return [
            GradualUnfreezing(
                stages=[
                    {"thaw": ["network.classifier", "network.bert.pooler"], "until_epoch": EPOCHS_EACH},
                    {"thaw": blocks, "until_epoch": 2 * EPOCHS_EACH},
                    {"thaw": "*"},
                ]
            )
        ]
    head = [r"network\.classifier\..*", r"network\.bert\.pooler\..*"]
    blocks = [rf"network\.bert\.encoder\.layer\.{index}\..*" for index in upper]
    lower = [rf"network\.bert\.encoder\.layer\.{index}\..*" for index in range(num_layers // 2)]
    phases = [head, blocks, [*lower, r"network\.bert\.embeddings\..*"]]
    return [peers.fts_in_phases(peers.fts(), phases, EPOCHS_EACH)]


def fit(name: str, folder: Path, width: int, num_layers: int, num_rows: int, **options: Any) -> Any:
    """One run; returns the clock before it, those of its steps, the Trainer and the module."""
    from lightning.pytorch import Trainer

    torch.set_num_threads(1)
    seen: list[float] = []
    module = module_of(bert(width, num_layers), is_filtered=name == FTS, seen=seen)
    begin = cpu_seconds()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=NUM_STAGES * EPOCHS_EACH,
        callbacks=callbacks_of(name, num_layers),
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=name == FTS,  # which needs its ModelCheckpoint
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, torch.utils.data.DataLoader(Batches(num_rows), batch_size=8))
    return begin, seen, trainer, module


def measure(width: int, num_layers: int, num_rows: int, num_rounds: int) -> Report:
    """All figures; without the peer, those of this package alone."""
    report = Report("B17", "Stages of fine-tuning a BERT", "")
    report.method = (
        f"BERT of {num_layers} blocks of width {width}, AdamW, 8 x 32 tokens, {num_rows // 8} steps an "
        f"epoch, {NUM_STAGES} stages of {EPOCHS_EACH} epochs, {num_rounds} rounds; CPU time, medians"
    )
    names = [BARE, OURS, *([FTS] if peers.fts() else [])]
    if FTS not in names:
        report.skip(FTS, "not installed")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    sizes = (width, num_layers, num_rows)
    for name in names[1:]:
        target = 0.0 if name == OURS else None
        report.add(f"{name}: drift of two ranks", drift(name, *sizes), "", target)
    with tempfile.TemporaryDirectory() as folder, quiet():

        def once(name: str) -> Callable[[], float]:
            def run() -> float:
                begin, seen, trainer, _ = fit(name, Path(folder), *sizes)
                found[name].append(_figures(begin, seen))
                trainer.save_checkpoint(Path(folder) / f"{name}.ckpt")
                return 0.0

            return run

        interleave({name: once(name) for name in names}, num_rounds)
        for what in ("to first step", *(f"step of stage {n + 1}" for n in range(NUM_STAGES))):
            for name in names:
                value = median(each[what] for each in found[name])
                report.add(f"{name}: {what}", 1e3 * value, "ms")
        for name in names[1:]:
            added = [
                each["transition"] - bare["transition"]
                for each, bare in zip(found[name], found[BARE], strict=True)
            ]
            report.add(f"{name}: transition", 1e3 * median(added), "ms")
        for name in names:
            size = (Path(folder) / f"{name}.ckpt").stat().st_size
            report.add(f"{name}: checkpoint at the end", size / 1024, "KiB")
    return report


def _figures(begin: float, seen: list[float]) -> dict[str, float]:
    """Seconds: to the first step, of a step of each stage, and from an epoch to the next with a new stage."""
    per_epoch = len(seen) // (NUM_STAGES * EPOCHS_EACH)
    found = {"to first step": seen[0] - begin}
    between = []
    for stage in range(NUM_STAGES):
        first = stage * EPOCHS_EACH * per_epoch
        own = seen[first : first + EPOCHS_EACH * per_epoch]
        found[f"step of stage {stage + 1}"] = median(
            end - start for start, end in zip(own[2::2], own[3::2], strict=True)
        )
        if stage:
            between.append(own[0] - seen[first - 1])
    return {**found, "transition": median(between)}


def drift(name: str, width: int, num_layers: int, num_rows: int) -> float:
    """The largest difference between the weights of two ranks of gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (port, folder, name, width, num_layers, num_rows)
        mp.start_processes(_rank, arguments, nprocs=2, start_method="spawn")
        one, other = (torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def _rank(rank: int, port: int, folder: str, name: str, *sizes: int) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update(place, WORLD_SIZE="2", NODE_RANK="0", LOCAL_RANK=str(rank), RANK=str(rank))
    # theirs takes strategies by name only, and leaves what it has not thawed in the wrapper; on CPU: gloo
    strategy = "ddp_find_unused_parameters_true" if name == FTS else "ddp"
    with quiet():
        *_, module = fit(name, Path(folder), *sizes, devices=2, strategy=strategy)
    torch.save(module.state_dict(), Path(folder) / f"{rank}.pt")


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    return measure(options.width, options.layers, options.rows, options.rounds)


def parser() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    options = argparse.ArgumentParser(prog="benchmarks.stages", description=__doc__)
    options.add_argument("--width", type=int, default=128, help="of the hidden states")
    options.add_argument("--layers", type=int, default=4, help="blocks")
    options.add_argument("--rows", type=int, default=64, help="of data, 8 in a batch")
    options.add_argument("--rounds", type=int, default=5, help="runs of each variant")
    return options


if __name__ == "__main__":
    main(run, parser())
