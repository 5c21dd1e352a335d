"""Freezers that wait for a metric: latched, and with clear errors for metrics that are not logged."""

from typing import Any

import pytest
import torch

from lighter_freezers import Freezer
from tests import lab
from tests.lab import batches, frozen_at_each_step, regression, trainer

LONE = "pytorch_lightning"


def held_steps(monitor: str, losses: list[float], **condition: Any) -> int:
    """Train for one epoch per loss, logged as `val/loss` and `train/extra`; count the steps held."""
    module = regression(LONE)
    values = iter(losses)
    module.validation_step = lambda batch, batch_idx: None
    module.on_validation_epoch_end = lambda: module.log("val/loss", next(values))
    freezer = Freezer(name_starts_with="layer2", until_metric={"monitor": monitor, **condition})
    held: list[bool] = []
    module.on_train_batch_start = lambda *_: held.append(not module.network.layer2.weight.requires_grad)
    trainer(LONE, callbacks=[freezer], max_epochs=len(losses)).fit(module, batches(), batches())
    return sum(held)


def test_a_threshold_lets_go_at_the_next_step() -> None:
    """Below 2.5 after the second epoch: eight steps held, and never again though the loss rises."""
    assert held_steps("val/loss", [3.0, 2.4, 9.0, 9.0], below=2.5) == 8


def test_a_plateau_lets_go_after_its_patience() -> None:
    """Two checks without progress."""
    assert held_steps("val/loss", [3.0, 2.0, 2.0, 2.0, 1.0], plateau={"patience": 2}) == 16


def test_a_training_metric_is_looked_at_once_an_epoch() -> None:
    """`train/loss` is complete at the epoch's end; a plateau of it counts epochs, not validations."""
    freezer = Freezer(
        name_starts_with="layer2",
        until_metric={"monitor": "train/loss", "plateau": {"patience": 1, "min_delta": 100.0}},
    )
    seen = frozen_at_each_step(LONE, [freezer], max_epochs=3, val_check_interval=1)

    assert seen == [["layer2"]] * 8 + [[]] * 4


def test_whichever_comes_first_step_or_metric() -> None:
    """`until_step` ends a hold that the metric would not."""
    freezer = Freezer(
        name_starts_with="layer2", until_step=3, until_metric={"monitor": "val/loss", "below": -1.0}
    )

    assert frozen_at_each_step(LONE, [freezer]) == [["layer2"]] * 3 + [[]]


def test_a_misspelt_validation_metric_is_an_error_before_the_first_batch() -> None:
    """The sanity check logs what validation logs."""
    freezer = Freezer(name_starts_with="layer2", until_metric={"monitor": "val/los", "below": 1.0})
    fit = trainer(LONE, callbacks=[freezer], num_sanity_val_steps=1)

    with pytest.raises(
        RuntimeError, match=r"waits for the metric 'val/los', .* Closest: val/loss\. .*self\.log"
    ):
        fit.fit(regression(LONE), batches(), batches())
    assert fit.global_step == 0


def test_a_metric_that_nobody_logs_is_an_error_after_the_first_epoch() -> None:
    """A training metric can be known no earlier."""
    freezer = Freezer(name_starts_with="layer2", until_metric={"monitor": "train/los", "below": 1.0})
    fit = trainer(LONE, callbacks=[freezer], max_epochs=3)

    with pytest.raises(
        RuntimeError, match="Closest: train/loss, .* Logged: train/batch_loss, train/loss, val/loss"
    ):
        fit.fit(regression(LONE), batches(), batches())
    assert fit.current_epoch == 0


def test_a_metric_of_one_of_several_loaders_is_the_closest() -> None:
    """Lightning adds the number of the loader to the name."""
    module = regression(LONE)
    type(module).validation_step = lambda self, batch, _, dataloader_idx=0: self.log("loss", self.loss(batch))
    freezer = Freezer(name_starts_with="layer2", until_metric={"monitor": "loss", "below": 1.0})

    with pytest.raises(RuntimeError, match="Closest: loss/dataloader_idx_0, loss/dataloader_idx_1. Logged"):
        trainer(LONE, callbacks=[freezer]).fit(module, batches(), [batches(), batches()])


@pytest.mark.parametrize("namespace", lab.NAMESPACES)
def test_a_metric_of_real_validations_only_is_no_error_in_the_sanity_check(
    namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning there; the first real validation logs it, and the layers thaw."""
    module = regression(namespace)

    def validate(batch: Any, batch_idx: int) -> None:
        module.log("val_loss", 1.0)
        if not module.trainer.sanity_checking:
            module.log("val_acc", 0.9)

    module.validation_step = validate
    freezer = Freezer(name_starts_with="layer2", until_metric={"monitor": "val_acc", "above": 0.5})
    fit = trainer(namespace, callbacks=[freezer], max_epochs=2, num_sanity_val_steps=1)
    held: list[bool] = []
    module.on_train_batch_start = lambda *_: held.append(not module.network.layer2.weight.requires_grad)
    fit.fit(module, batches(), batches())

    assert held == [True] * 4 + [False] * 4
    assert "'val_acc', but it was not logged in the sanity check" in caplog.text


@pytest.mark.parametrize("namespace", lab.NAMESPACES)
def test_the_name_of_a_lighter_module_without_epoch_is_enough(namespace: str) -> None:
    """It logs `val/loss/epoch`; `val/loss` means the same."""
    module = regression(namespace)
    module.validation_step = lambda batch, batch_idx: module.log("val/loss/epoch", torch.tensor(1.0))
    freezer = Freezer(name_starts_with="layer2", until_metric={"monitor": "val/loss", "below": 2.0})
    fit = trainer(namespace, callbacks=[freezer], max_epochs=2, num_sanity_val_steps=1)
    held: list[bool] = []
    module.on_train_batch_start = lambda *_: held.append(not module.network.layer2.weight.requires_grad)
    fit.fit(module, batches(), batches())

    assert held == [True] * 4 + [False] * 4
