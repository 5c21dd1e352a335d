"""Steps are optimizer steps and losses are whole ones, however `accumulate_grad_batches` changes."""

import json
from csv import DictReader
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback

from lighter_freezers import Freezer, GradientNormMonitor, LayerOperations, ResultsSummary
from lighter_freezers.engine.training_loss import TrainingLoss
from lighter_freezers.layers.operations.action import QueuedOperations
from tests.lab import NAMESPACES, batches, first_now, recorder, regression, trainer


def change(namespace: str, lengths: dict[int, int], hook: str) -> Any:
    """Sets another window length at some batches, and goes back at the end of the epoch."""

    class Change(import_module(namespace).Callback):  # type: ignore[misc, name-defined]
        pass

    def at_batch(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        index = rest[-1] if hook == "on_train_batch_start" else rest[-1] + 1
        trainer.accumulate_grad_batches = lengths.get(index, trainer.accumulate_grad_batches)

    setattr(Change, hook, at_batch)
    return Change()


@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize(
    ("first", "lengths"),
    [(4, {5: 1}), (4, {4: 1}), (1, {2: 4}), (4, {6: 3}), (2, {3: 4, 9: 1}), (4, {2: 1, 6: 4, 10: 2})],
)
@pytest.mark.parametrize("windows", [[[0, 3]], [[2, 4]]])
def test_a_freezer_counts_optimizer_steps(
    namespace: str, hook: str, order: str, first: int, lengths: dict[int, int], windows: Any
) -> None:
    """It holds in these steps and no others, and never changes in the middle of a window."""
    module = regression(namespace)
    flags: list[tuple[int, bool]] = []
    note = recorder(
        namespace,
        lambda t, m: flags.append((t.global_step, m.network.layer2.weight.requires_grad)),
        "on_before_backward",
    )
    callbacks = [Freezer(name_starts_with="layer2.", windows=windows), change(namespace, lengths, hook)]
    callbacks = callbacks if order == "ours first" else callbacks[::-1]
    options = {"max_epochs": 2, "accumulate_grad_batches": first}
    trainer(namespace, callbacks=[*callbacks, note], **options).fit(module, batches(96), batches())
    held = {step for begin, end in windows for step in range(begin, end)}
    assert all(flag is (step not in held) for step, flag in flags)
    assert {step for step, _ in flags} > held


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize(("lengths", "thawed"), [({}, 4), ({1: 3}, 3)], ids=["regular", "changed"])
def test_a_metric_in_the_middle_of_a_window_waits_for_its_end(
    namespace: str, lengths: dict[int, int], thawed: int
) -> None:
    """Validation after each batch: the first window thaws nothing, for it would train by part of it."""
    at = recorder(
        namespace,
        lambda _, m: m.network.layer2.weight.requires_grad,
        "on_before_backward",
    )
    freezer = Freezer(name_starts_with="layer2.", until_metric={"monitor": "val/loss", "below": 100.0})
    callbacks = [change(namespace, lengths, "on_train_batch_start"), freezer, at]
    options = {"accumulate_grad_batches": 4, "val_check_interval": 1}
    trainer(namespace, callbacks=callbacks, **options).fit(regression(namespace), batches(64), batches(8))
    assert at.seen.index(True) == thawed


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("average_over", [1, 2, 3])
@pytest.mark.parametrize("lengths", [{}, {4: 1}, {6: 4}])
def test_the_training_loss_fires_in_time(namespace: str, average_over: int, lengths: Any) -> None:
    """Losses 30, 29, 28, ...: the mean of a block is that of its whole losses, read one step later."""
    module = regression(namespace)
    left = iter(range(30, 0, -1))
    module.training_step = lambda batch, batch_idx: module.loss(batch) * 0 + float(next(left))
    operation = {"name": "freeze_layer", "value": "layer2", "trigger_loss": 21.6}
    ours = LayerOperations([operation], monitor="training_loss", average_over=average_over)
    flags = recorder(namespace, lambda _, m: m.network.layer2.weight.requires_grad)
    callbacks = [change(namespace, lengths, "on_train_batch_end"), ours, flags]
    options = {"max_epochs": 1, "accumulate_grad_batches": 2}
    trainer(namespace, callbacks=callbacks, **options).fit(module, batches(192), batches())
    first = flags.seen.index(False)
    assert 30 - first < 21.6  # not before the loss is that low
    assert first <= 9 + 2 * 4 * (average_over + 1)


def test_a_scheduler_of_accumulation() -> None:
    """Lightning's own callback changes the length at an epoch's start."""
    from pytorch_lightning.callbacks import GradientAccumulationScheduler

    module = regression("pytorch_lightning")
    flags = recorder(
        "pytorch_lightning",
        lambda t, m: (t.global_step, m.network.layer2.weight.requires_grad),
        "on_before_backward",
    )
    callbacks = [
        GradientAccumulationScheduler({0: 4, 1: 1}),
        Freezer(name_starts_with="layer2.", until_step=5),
    ]
    trainer("pytorch_lightning", callbacks=[*callbacks, flags], max_epochs=3).fit(
        module, batches(64), batches()
    )
    assert all(flag is (step >= 5) for step, flag in flags.seen)
    assert torch.isfinite(module.network.layer2.weight).all()


class Switch(Callback):
    """Accumulates two batches, and one from the third batch of epoch 1 on; each hook of a batch can do it."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.switch)
        self.is_late = hook == "on_train_batch_end"

    def switch(self, trainer: Any, module: Any, *rest: Any) -> None:
        index = rest[-1] + self.is_late
        trainer.accumulate_grad_batches = 1 if (trainer.current_epoch, index) >= (1, 2) else 2


def numbered(module: Any) -> Any:
    """Its losses are 1, 2, 3 and so on."""
    count = iter(range(1, 1000))
    module.training_step = lambda batch, batch_idx: module.loss(batch) * 0 + float(next(count))
    return module


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
@pytest.mark.parametrize("order", [1, -1])
def test_every_mean_is_that_of_whole_losses(hook: str, order: int, tmp_path: Path) -> None:
    """In a short last window, and when the length changes in mid-epoch: operations, norms, the summary."""
    averages: list[float] = []
    operation = {"name": "freeze_layer", "value": "layer1", "trigger_loss": -1.0}
    operations = LayerOperations([operation], monitor="training_loss", average_over=2)
    ours = [operations, GradientNormMonitor(every_n_steps=1, dirpath=str(tmp_path)), ResultsSummary()]
    observe = QueuedOperations.observe
    with pytest.MonkeyPatch.context() as patch:
        note = lambda action, name, value: (averages.append(value), observe(action, name, value))[1]  # noqa: E731
        patch.setattr(QueuedOperations, "observe", note)
        callbacks = [Switch(hook), *ours][::order]
        options = {"accumulate_grad_batches": 2, "callbacks": callbacks, "default_root_dir": tmp_path}
        fit = trainer("pytorch_lightning", max_epochs=2, **options)
        fit.fit(numbered(regression("pytorch_lightning")), batches(40), batches())
    # the steps are those of batches 1-2, 3-4, 5; 6-7, 8, 9, 10
    assert fit.global_step == 7
    assert averages == [2.5, 6.0]  # that of 8 and 9 could be read one step later
    with (tmp_path / "gradient_analysis.losses.csv").open() as file:
        rows = [row for row in DictReader(file) if row["train_loss"]]
    assert [float(row["train_loss"]) for row in rows] == [1.5, 3.5, 5.0, 6.5, 8.0, 9.0, 10.0]
    assert json.loads((tmp_path / "results_summary.json").read_text())["train_loss"] == 5.5


def test_an_older_checkpoint_has_divided_losses() -> None:
    """Those of one window of two batches, and of a half one."""
    loss = TrainingLoss(2, 1)
    loss.remember({"losses": [1.0, 2.0, 3.0], "windows": [2, 2, 2], "averages": []})
    assert loss.state() == {"losses": [2.0, 4.0, 6.0], "num_done": 1, "is_open": True, "averages": []}
    assert loss.note(torch.tensor(8.0), 2, 2)
