"""Processes that begin from nothing, as on Windows and macOS: what they get travels by pickle alone."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch

from lighter_freezers import (
    Freezer,
    FreezeStateLogger,
    GradientNormMonitor,
    PhaseRecorder,
    ResultsSummary,
)
from tests.lab import NAMESPACES, TinyNet, batches
from tests.texts import write_texts

pytestmark = pytest.mark.wide


class Net:
    """Four layers, and what is frozen in each step; at module level, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.seen = TinyNet(), list[list[bool]]()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        layers = (self.network.layer1, self.network.layer2, self.network.head)
        self.seen.append([not layer.weight.requires_grad for layer in layers])
        loss = (self.network(batch[0]) - batch[1]).square().mean()
        self.log("train/loss", loss)  # type: ignore[attr-defined]
        return loss

    def on_train_end(self) -> None:
        self.trainer.strategy.barrier()  # type: ignore[attr-defined]
        file = Path(self.trainer.default_root_dir, f"{self.trainer.global_rank}.pt")  # type: ignore[attr-defined]
        torch.save({"seen": self.seen, "weights": self.network.state_dict()}, file)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)


class OfPyTorchLightning(Net, pytorch_lightning.LightningModule): ...


class OfLightning(Net, lightning.pytorch.LightningModule): ...


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.filterwarnings("default")  # what a Trainer that spawns warns of is its own
def test_two_spawned_processes_freeze_as_one_does(namespace: str, tmp_path: Path) -> None:
    """Callbacks, made before the processes begin, thaw at the same step on both, with equal weights."""
    module = OfPyTorchLightning() if namespace == NAMESPACES[0] else OfLightning()
    callbacks = [
        Freezer(name_starts_with="network.layer1.", until_step=4),
        Freezer(names="network.layer2.weight", until_metric={"monitor": "train/loss", "below": 100.0}),
        Freezer(name_starts_with="network.head.", from_step=6),
        *(FreezeStateLogger(), GradientNormMonitor(every_n_steps=2), PhaseRecorder(), ResultsSummary()),
    ]
    trainer = import_module(namespace).Trainer(
        strategy="ddp_spawn",
        devices=2,
        accelerator="cpu",
        max_steps=8,
        callbacks=callbacks,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
    )
    trainer.fit(module, batches())

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert [each[0] for each in first["seen"]] == [True] * 4 + [False] * 4
    assert [each[2] for each in first["seen"]] == [False] * 6 + [True] * 2
    assert first["seen"] == second["seen"]
    assert all(torch.equal(each, second["weights"][name]) for name, each in first["weights"].items())


WORKERS = """
import multiprocessing, sys
import torch
from lighter_freezers import TextDataModule

def main():
    multiprocessing.set_start_method("spawn")
    for workers in (0, 2):
        options = {"vocab_size": 300, "block_size": 32, "cache_dir": "cache", "num_workers": workers}
        data = TextDataModule(sys.argv[1], **options)
        data.prepare_data()
        data.setup()
        print(torch.cat([batch["input_ids"] for batch in data.train_dataloader()]).sum(dim=1).tolist())

if __name__ == "__main__":
    main()
"""


def test_workers_that_are_spawned_give_the_same_batches(tmp_path: Path) -> None:
    """Tokenizer, sequences and order reach them by pickle."""
    texts = write_texts(tmp_path / "texts")
    (tmp_path / "program.py").write_text(WORKERS)
    command = [sys.executable, "program.py", str(texts)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    assert run.returncode == 0, run.stderr[-3000:]
    here, there = run.stdout.splitlines()
    assert here == there
