"""The training loss as a monitor: the mean of a block, on the device, read late, and only while needed."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lighter_freezers import LayerOperations
from lighter_freezers.engine.training_loss import TrainingLoss
from tests.lab import NAMESPACES, batches, frozen_layers, recorder, regression, trainer

LONE = "pytorch_lightning"
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


class Reads(TorchDispatchMode):
    """Counts how often the host reads a number from a tensor, by optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.steps: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READS:
            self.steps.append(self.step)
        return function(*args, **(kwargs or {}))


def fit(
    losses: list[float], trigger_loss: float, namespace: str = LONE, average_over: int = 2, window: int = 1
) -> tuple[list[bool], Reads]:
    """One batch for each loss. Returns whether `layer2` was frozen in each, and the reads of the host."""
    module = regression(namespace)
    values = iter(losses)
    module.training_step = lambda batch, batch_idx: module.loss(batch) * 0 + next(values)
    operations = [{"name": "freeze_layer", "value": "layer2", "trigger_loss": trigger_loss}]
    callback = LayerOperations(operations, monitor="training_loss", average_over=average_over)
    reads = Reads()

    def note(t: Any, m: Any) -> bool:
        reads.step = t.global_step
        return "layer2" in frozen_layers(m)

    seen = recorder(namespace, note)
    fitted = trainer(
        namespace,
        callbacks=[callback, seen],
        max_epochs=len(losses) // 4,
        accumulate_grad_batches=window,
        limit_val_batches=0,
        enable_progress_bar=False,
    )
    with reads:
        fitted.fit(module, batches(), batches())
    return seen.seen, reads


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_mean_of_a_block_is_read_one_step_late(namespace: str) -> None:
    """Steps 2 and 3 have the mean 1; it is known after step 3, and read after step 4."""
    frozen, _ = fit([5.0, 3.0, 1.5, 0.5, 9.0, 9.0, 9.0, 9.0], 1.25, namespace)

    assert frozen == [False] * 5 + [True] * 3


def test_the_mean_is_strictly_that_of_the_block() -> None:
    """A single low loss is not enough, and a mean equal to the threshold neither."""
    frozen, _ = fit([5.0, 0.0, 0.0, 5.0, 1.0, 1.0, 9.0, 9.0, 0.0, 0.0, 9.0, 9.0], 1.0)

    assert frozen == [False] * 11 + [True]


def test_accumulated_batches_count_undivided() -> None:
    """Lightning divides each loss by the window; two steps of two batches make a block."""
    frozen, _ = fit([2.0, 4.0, 2.0, 4.0, 9.0, 9.0, 9.0, 9.0], 3.5, window=2)
    assert frozen == [False] * 6 + [True] * 2
    frozen, _ = fit([2.0, 4.0, 2.0, 4.0, 9.0, 9.0, 9.0, 9.0], 2.9, window=2)
    assert frozen == [False] * 8


def test_a_loss_that_is_not_a_number_meets_no_condition() -> None:
    """And the block after it is judged by itself."""
    frozen, _ = fit([float("nan"), 1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0], 2.0)

    assert frozen == [False] * 5 + [True] * 3


def test_the_host_reads_once_per_block_and_not_after_the_last_operation() -> None:
    """Four steps to a block; what is due is found in the second block, and then nothing is read."""
    _, bare = fit([9.0] * 16, -1.0, average_over=1000)
    _, pending = fit([9.0] * 16, -1.0, average_over=4)
    frozen, done = fit([9.0] * 4 + [1.0] * 12, 2.0, average_over=4)

    def added(reads: Reads) -> list[int]:
        """The steps of reads that a fit without a trigger in reach does not make."""
        rest = Counter(reads.steps) - Counter(bare.steps)
        return sorted(step for step in rest.elements() if step < 16)  # at the end the state is saved

    assert frozen.index(True) == 9
    assert added(pending) == [5, 9, 13]
    assert added(done) == [5, 9]


def test_a_step_without_a_loss_is_passed_over() -> None:
    """`training_step` may return None."""
    module = regression(LONE)
    module.training_step = lambda batch, batch_idx: None if batch_idx == 1 else module.loss(batch) * 0 + 1.0
    operations = [{"name": "freeze_layer", "value": "layer2", "trigger_loss": 2.0}]
    callback = LayerOperations(operations, monitor="training_loss", average_over=2)
    seen = recorder(LONE, lambda t, m: "layer2" in frozen_layers(m))
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        trainer(LONE, callbacks=[callback, seen], max_epochs=2, limit_val_batches=0).fit(
            module, batches(), batches()
        )

    assert seen.seen == [False] * 4 + [True] * 4


def test_batches_without_a_loss_count_in_a_row() -> None:
    """A loss between two of them begins anew."""
    losses = TrainingLoss(2, optimizer_step=0)
    for step, loss in enumerate((None, torch.ones(()), None, torch.ones(())), start=1):
        is_full = losses.note(loss, step, window=1)

    assert is_full
    losses.note(None, 5, window=1)
    with pytest.raises(RuntimeError, match="gave no loss in 2 batches"):
        losses.note(None, 6, window=1)


def test_losses_of_an_older_checkpoint_are_those_of_whole_batches() -> None:
    """It has them as Lightning divided them, and the length of each one's window."""
    losses = TrainingLoss(4, optimizer_step=0)
    losses.remember({"windows": [2, 2, 2], "losses": [0.5, 1.0, 1.5], "averages": []})

    assert losses.state() == {"losses": [1.0, 2.0, 3.0], "num_done": 1, "is_open": True, "averages": []}
