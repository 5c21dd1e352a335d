"""Steps are optimizer steps and losses are whole ones, however `accumulate_grad_batches` changes."""

from importlib import import_module
from typing import Any

import pytest
import torch

from lighter_freezers import Freezer, LayerOperations
from tests.lab import NAMESPACES, batches, recorder, regression, trainer


def change(namespace: str, lengths: dict[int, int], hook: str) -> Any:
    """Sets another window length at some batches, and goes back at the end of the epoch."""

    class Change(import_module(namespace).Callback):  # type: ignore[misc, name-defined]
        pass

    def at_batch(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        index = rest[-1] if hook == "on_train_batch_start" else rest[-1] + 1
        trainer.accumulate_grad_batches = lengths.get(index, trainer.accumulate_grad_batches)

    setattr(Change, hook, at_batch)
    return Change()


@pytest.mark.parametrize("namespace", NAMESPACES)
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
