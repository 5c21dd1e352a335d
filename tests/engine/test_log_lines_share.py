"""How much of a model is frozen, in a log line."""

import logging

import pytorch_lightning as pl
import torch
from torch import nn

from lighter_freezers import Freezer


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(400, 400), nn.Linear(400, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.head(self.trunk(batch)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_what_trains_is_said_where_the_share_would_round_to_all(tmp_path, caplog) -> None:
    """99.75 % rounds to 99.8 %; 99.98 % would round to 100 % while the head trains."""
    model = Net()
    model.trunk = nn.Sequential(*(nn.Linear(400, 400) for _ in range(8)), nn.Linear(400, 400))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Freezer(name_starts_with=["trunk"])],
    )
    with caplog.at_level(logging.INFO, "lighter_freezers"):
        trainer.fit(model, torch.utils.data.DataLoader(torch.zeros(2, 400)))

    assert "99.97 % frozen, 401 train" in caplog.text
