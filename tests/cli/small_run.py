"""What a small config names: a module that notes which parts train at each step, and its data."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from tests.callbacks.block_net import BlockNet, part_of
from tests.lab import batches

SEEN: list[set[str]] = []  # what trained at each step of the last run
RATES: list[dict[str, float]] = []  # and at which learning rate
CONFIG = """\
# A small run.

trainer:
  _target_: pytorch_lightning.Trainer
  max_epochs: 5     # four steps each
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    # it only looks
    - _target_: lighter_freezers.FreezeStateLogger

model:
  _target_: tests.cli.small_run.Regression
  network:
    _target_: tests.callbacks.block_net.BlockNet
  optimizer:
    _target_: torch.optim.SGD
    params: "$@model::network.parameters()"
    lr: 0.1

data:
  _target_: tests.cli.small_run.Data
"""


class Regression(pl.LightningModule):
    def __init__(self, network: nn.Module, optimizer: Any = None) -> None:
        super().__init__()
        self.network, self.optimizer = network, optimizer

    def on_train_start(self) -> None:
        SEEN.clear()
        RATES.clear()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        SEEN.append({part_of(name) for name, p in self.named_parameters() if p.requires_grad})
        names = {id(p): part_of(name) for name, p in self.named_parameters()}
        groups = self.trainer.optimizers[0].param_groups
        RATES.append({names[id(p)]: group["lr"] for group in groups for p in group["params"]})
        return nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.optimizer


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return batches()


def whole_module() -> Regression:
    network = BlockNet()
    return Regression(network, torch.optim.SGD(network.parameters(), lr=0.1))
