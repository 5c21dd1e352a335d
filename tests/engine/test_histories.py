"""Random histories of our callbacks, run by a Trainer, whole and cut, against an oracle in plain torch."""

import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import Checkpoint
from torch.utils.data import DataLoader

import lighter_freezers
from tests.engine.drawn_histories import cuts, histories, manual
from tests.engine.oracle import NUM_SAMPLES, OPTIMIZERS, History, Net, Oracle, Record, factor_of
from tests.lab import ResumableLoader, trainer

LONE = "pytorch_lightning"


class Module(LightningModule):
    """Trains what the history says, and records what the oracle does."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history, self.record = history, Record()
        self.network = Net()
        for name in history.user_frozen:
            self.network.get_parameter(name).requires_grad = False
        self.automatic_optimization = not history.has_two_optimizers

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        parameters = self.network.named_parameters()
        self.record.frozen.append({name for name, p in parameters if not p.requires_grad})
        self.log("train/score", float(self.history.scores[self.current_epoch]), on_step=False, on_epoch=True)
        loss = self.network(batch).square().mean()
        if self.history.has_two_optimizers:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.record.statistics.append(self.network.norm.running_mean.clone())

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/score", float(self.history.scores[self.current_epoch]))

    def configure_optimizers(self) -> Any:
        parameters = [*self.network.parameters()]
        parts = [parameters[:4], parameters[4:]] if self.history.has_two_optimizers else [parameters]
        if self.history.is_filtered:
            parts = [[p for p in part if p.requires_grad] for part in parts]
        built = [OPTIMIZERS[self.history.optimizer](part) for part in parts]
        for optimizer in built:
            optimizer.register_step_post_hook(self._note_rates)
        if not self.history.has_scheduler:
            return built
        scheduler = torch.optim.lr_scheduler.LambdaLR(built[0], factor_of)
        return {"optimizer": built[0], "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _note_rates(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        names = {id(p): name for name, p in self.network.named_parameters()}
        trained = [(p, group["lr"]) for group in optimizer.param_groups for p in group["params"]]
        self.record.rates.append({names[id(p)]: float(lr) for p, lr in trained if p.grad is not None})


class Saver(Checkpoint):
    """Saves one checkpoint, after a batch, a validation or an epoch; Lightning puts it behind all others."""

    def __init__(self, when: str, step: int, path: Path) -> None:
        self.when, self.step, self.path = when, step, path
        self.num_batches: int | None = None  # after which it has saved

    def save(self, trainer: Any, when: str) -> None:
        if when == self.when and trainer.global_step >= self.step and not self.path.exists():
            self.num_batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.save(trainer, "batch")

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        self.save(trainer, "epoch")


def run(history: History, *others: Callback, ckpt_path: Path | None = None) -> tuple[Record, list[str]]:
    """Fit with the callbacks of a history: the record of it, and what was warned of."""
    module = Module(history)
    loader = ResumableLoader.__new__(ResumableLoader)
    DataLoader.__init__(loader, history.data(), batch_size=NUM_SAMPLES)  # type: ignore[arg-type]
    loader._num_given = 0
    ours = [getattr(lighter_freezers, kind)(**arguments) for kind, arguments in history.callbacks]
    callbacks = [*ours, *others]
    random.Random(history.order + bool(ckpt_path)).shuffle(callbacks)  # in another order after the cut
    fit = trainer(
        LONE,
        callbacks=callbacks,
        enable_checkpointing=bool(others),
        max_epochs=history.num_epochs,
        accumulate_grad_batches=history.accumulate,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit.fit(module, loader, DataLoader(torch.zeros(1, 3)), ckpt_path=ckpt_path)
    record = module.record
    record.weights = dict(module.network.state_dict())
    record.left = {name for name, p in module.network.named_parameters() if not p.requires_grad}
    states = [optimizer.state for optimizer in fit.optimizers]
    record.state = {
        name: dict(next((state[p] for state in states if p in state), {}))
        for name, p in module.network.named_parameters()
    }
    return record, [str(each.message) for each in said]


def compare(found: Record, expected: Record) -> None:
    """Equal to the last bit; a run that was resumed has the last part of each list."""
    for key in ("frozen", "rates", "statistics"):
        seen, all_of_it = getattr(found, key), getattr(expected, key)
        rest = all_of_it[len(all_of_it) - len(seen) :]
        if key == "statistics":
            assert all(map(torch.equal, seen, rest)), key
        else:
            assert seen == rest, key
    assert found.left == expected.left or not found.frozen  # nothing was left to train after the cut
    assert found.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name
    for name, state in expected.state.items():
        assert found.state[name].keys() == state.keys(), name
        for key, value in state.items():
            assert value is found.state[name][key] is None or torch.equal(found.state[name][key], value), name


def check(history: History, cut: tuple[str, int]) -> None:
    torch.set_num_threads(1)  # before the oracle, too: other threads sum in another order
    expected = Oracle(history).run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.ckpt"
        saver = Saver(*cut, path)
        whole, _ = run(history, saver)
        compare(whole, expected)
        if not path.exists():
            return
        resumed, said = run(history, ckpt_path=path)
        if any("right before a validation" in text for text in said):  # it is not the same run, and says so
            assert _misses_a_validation(history, path)
        else:
            compare(resumed, Oracle(history, saver.num_batches).run())


def _misses_a_validation(history: History, path: Path) -> bool:
    """Whether it was saved between the last batch of an epoch and its validation, which something awaits."""
    progress = torch.load(path, weights_only=False)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    is_in_batch = progress["current"]["completed"] < progress["current"]["processed"]
    return bool(progress["is_last_batch"] and is_in_batch and "val/score" in repr(history.callbacks))


QUICK = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": [*HealthCheck]}


MET = "Freezer", {"name_starts_with": "layer1.", "until_metric": {"monitor": "train/score", "below": 3}}
LATE = "Freezer", {"name_starts_with": "layer1.", "until_metric": {"monitor": "val/score", "above": 1}}


THAWS = "Freezer", {"names": "layer2.bias", "restore_on_end": True}
HOLDS = "Freezer", {"train": "head"}
PLATEAU = (
    "Freezer",
    {
        "name_starts_with": "layer1.",
        "until_metric": {"monitor": "train/score", "plateau": {"patience": 2}},
    },
)
STILL = (  # a norm in inference mode by two Freezers, one after the other
    (
        "Freezer",
        {"name_starts_with": "norm.", "windows": [[1, 2]], "frozen_norms": "train", "frozen_mode": "eval"},
    ),
    ("Freezer", {"name_starts_with": "norm.", "windows": [[2, 4]]}),
)


@settings(max_examples=60, **QUICK)
@given(histories | manual, cuts)
@example(History((MET,), num_epochs=3), ("batch", 6))  # at the last batch of the epoch that meets it
@example(History((MET,), num_epochs=3), ("batch", 7))  # after that
@example(History((LATE,), num_epochs=3, num_batches=2, scores=(1, 2, 1)), ("batch", 4))  # its value is lost
@example(History((PLATEAU,), num_batches=2), ("batch", 2))  # and nothing that was awaited is
@example(History(STILL, num_epochs=3), ("batch", 3))
@example(History((HOLDS, THAWS)), ("batch", 1))  # what only one of them restores stays frozen
@example(History((THAWS, HOLDS)), ("batch", 1))
@example(History((MET,), num_batches=4, accumulate=3), ("batch", 0))  # gradients of a half window are lost
def test_a_history_is_what_the_documents_say(history: History, cut: tuple[str, int]) -> None:
    """Frozen sets, rates and batch-norm statistics at each step; weights, state and flags at the end."""
    check(history, cut)


@pytest.mark.wide
@settings(max_examples=1600, **QUICK)
@given(histories | manual, cuts)
def test_a_long_run_of_histories(history: History, cut: tuple[str, int]) -> None:
    """More of the same."""
    check(history, cut)
