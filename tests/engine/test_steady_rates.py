"""A requested learning rate costs two comparisons per step; a rate that moves is written once."""

import sys
from types import FrameType

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lighter_freezers import Freezer
from lighter_freezers.engine.effects.learning_rates import ThawedGroup


class Net(pl.LightningModule):
    def __init__(
        self, *, is_scheduled: bool = False, rate_by_hand: float | None = None, hook: str = "optimizer_step"
    ) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
        self.is_scheduled, self.rate_by_hand, self.hook = is_scheduled, rate_by_hand, hook
        self.counts: list[int] = []
        self.rates: list[float] = []
        self.seen: list[float] = []
        self.num_calls = 0

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.counts.append(self.num_calls)
        self.seen.append(self.optimizers().param_groups[-1]["lr"])
        self._write_rates("training_step")
        return self.head(self.backbone(batch)).square().mean()

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        self._write_rates("optimizer_step")
        optimizer.step(closure=optimizer_closure)
        self.rates.append(optimizer.param_groups[-1]["lr"])

    def on_before_optimizer_step(self, optimizer):
        self._write_rates("on_before_optimizer_step")

    def _write_rates(self, hook: str) -> None:
        for group in self.optimizers().param_groups if self.rate_by_hand and hook == self.hook else ():
            group["lr"] = self.rate_by_hand

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        scheduler = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler} if self.is_scheduled else optimizer


def fit(model: Net, *callbacks: pl.Callback) -> None:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[*callbacks], **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(torch.randn(80, 4), batch_size=4))


def test_a_steady_step_calls_us_three_times() -> None:
    model = Net()

    def count(frame: FrameType, event: str, _: object) -> None:
        model.num_calls += event == "call" and "lighter_freezers" in frame.f_code.co_filename

    thawing = {"name_starts_with": "backbone.", "until_step": 2, "unfreeze_lr_factor": 0.1}
    sys.setprofile(count)
    try:
        fit(model, Freezer(**thawing, warmup_steps=3))
    finally:
        sys.setprofile(None)
    # the step's hook, and a comparison before its closure and after it
    assert model.counts[16] - model.counts[15] - _calls_of_plain_freezer() == 3


def _calls_of_plain_freezer() -> int:
    model = Net()

    def count(frame: FrameType, event: str, _: object) -> None:
        model.num_calls += event == "call" and "lighter_freezers" in frame.f_code.co_filename

    sys.setprofile(count)
    try:
        fit(model, Freezer(name_starts_with="backbone.", until_step=2))
    finally:
        sys.setprofile(None)
    return model.counts[16] - model.counts[15]


@pytest.mark.parametrize(("warmup_steps", "is_scheduled"), [(100, False), (0, True), (100, True)])
def test_a_moving_rate_is_written_once_per_step(
    warmup_steps: int, is_scheduled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net(is_scheduled=is_scheduled)
    writes = []
    write = ThawedGroup.set_learning_rate
    monkeypatch.setattr(
        ThawedGroup,
        "set_learning_rate",
        lambda group, step: (writes.append(model.trainer.global_step), write(group, step))[1],
    )
    rate = {"unfreeze_lr_factor": 0.1, "warmup_steps": warmup_steps}
    fit(model, Freezer(name_starts_with="backbone.", until_step=2, **rate))
    assert [writes.count(step) for step in range(5, 19)] == [1] * 14


@pytest.mark.parametrize("hook", ["optimizer_step", "training_step", "on_before_optimizer_step"])
def test_a_rate_written_by_hand_does_not_replace_the_requested_one(hook: str) -> None:
    """Lightning calls the last two inside the optimizer's step."""
    model = Net(rate_by_hand=0.02, hook=hook)
    fit(model, Freezer(name_starts_with="backbone.", until_step=2, unfreeze_lr_factor=0.1))
    assert model.rates[:2] == [0.02, 0.02]
    assert model.rates[2:] == pytest.approx([0.002] * 18)
    assert model.seen[3:] == pytest.approx([0.002] * 17)


def test_a_thaw_writes_its_rate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the process that looks for rates of 0, too."""
    model, writes = Net(), []
    write = ThawedGroup.set_learning_rate
    monkeypatch.setattr(
        ThawedGroup,
        "set_learning_rate",
        lambda group, moment: (writes.append(moment.optimizer_step), write(group, moment))[1],
    )
    fit(model, Freezer(name_starts_with="backbone.", until_step=5, unfreeze_lr_factor=0.1))
    assert writes.count(5) == 1
