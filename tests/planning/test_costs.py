"""What a plan says of costs: against hand arithmetic, and against Trainers that really run."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import (
    Freezer,
    LayerOperations,
    PhaseRecorder,
    plan,
)
from lighter_freezers.planning.comparison import compare, read_report
from tests.lab import NormNet, TinyNet, adamw, batches, regression, trainer
from tests.planning.small_plans import COUNTS, planned


def test_bytes_and_operations_are_those_of_arithmetic() -> None:
    """Matrix products of four linear layers on 8 rows; AdamW keeps two moments and a step of 4 bytes each."""
    frozen, thawed = planned([Freezer(name_starts_with=["layer1.", "layer2."], until_step=2)]).phases
    square, head = 2 * 8 * 8 * 8, 2 * 8 * 8  # operations of one product

    assert thawed.flops == 3 * (3 * square + head) - square  # the first layer needs no gradient of its input
    assert frozen.flops == (3 * square + head) + 2 * square + 2 * head - square
    assert thawed.gradient_bytes == 4 * 225
    assert frozen.gradient_bytes == 4 * 81
    assert thawed.optimizer_bytes == 8 * 225 + 4 * 8
    assert frozen.optimizer_bytes == 8 * 81 + 4 * 4


class Record:
    """What of a run is compared with its plan."""

    def __init__(
        self,
        callbacks: list[Any],
        network: Any = TinyNet,
        namespace: str = "pytorch_lightning",
        **options: Any,
    ) -> None:
        self.callbacks, self.network, self.namespace, self.options = callbacks, network, namespace, options


RUNS = {
    "steps": Record([Freezer(name_starts_with="layer1.", until_step=4)], max_epochs=3),
    "lightning.pytorch": Record(
        [Freezer(name_starts_with="layer1.", until_step=4)], namespace="lightning.pytorch", max_epochs=3
    ),
    "accumulation": Record(
        [Freezer(name_starts_with="layer1.", until_step=4)], max_epochs=6, accumulate_grad_batches=2
    ),
    "norms that stand still": Record(
        [Freezer(name_starts_with="backbone", until_step=5)], NormNet, max_epochs=3, gradient_clip_val=1.0
    ),
    "operations": Record(
        [
            LayerOperations(
                [
                    {"name": "freeze_layer", "value": "layer1", "max_wait_iters": 0},
                    {"name": "freeze_layer", "value": "layer2", "max_wait_iters": 4},
                    {"name": "unfreeze_layer", "value": "layer1", "max_wait_iters": 3},
                ]
            )
        ],
        max_epochs=3,
    ),
    "state that is forgotten": Record(
        [Freezer(name_starts_with="layer1.", from_step=4, optimizer_state="reset")], max_epochs=3
    ),
    "bf16": Record([Freezer(name_starts_with="layer1.", until_step=4)], max_epochs=3, precision="bf16-mixed"),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_plan_is_what_the_run_measures(name: str, tmp_path: Any) -> None:
    """FLOPs, gradients, optimizer state and activations of every phase, to the byte."""
    run = RUNS[name]
    options = {**run.options, "default_root_dir": tmp_path}
    callbacks = [*copy.deepcopy(run.callbacks), PhaseRecorder(num_timed=1)]
    real = trainer(run.namespace, callbacks=callbacks, **options)
    model = regression(run.namespace, run.network, adamw)
    seen = plan(real, model, train_dataloaders=batches(), **COUNTS)
    real.fit(model, batches(), batches())
    compared = compare(seen, read_report(tmp_path))

    off = {(line.phase, line.what): line.off for line in compared.lines if line.what != "relative_time"}
    assert compared.missing == ()
    assert len(off) == 4 * len(seen.phases) >= 8
    assert set(off.values()) == {0.0}


def test_times_are_in_relation_to_the_phase_with_the_most_operations() -> None:
    """It has 1; a model whose frozen part is nearly all of it takes less."""
    torch.manual_seed(0)

    def wide() -> nn.Module:
        return nn.Sequential(*(nn.Linear(512, 512) for _ in range(6)), nn.Linear(512, 1))

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(256, 512), torch.randn(256, 1)), batch_size=64
    )
    frozen = Freezer(name_starts_with=[f"network.{index}." for index in range(6)], until_step=2)
    seen = plan(
        trainer("pytorch_lightning", callbacks=[frozen]),
        regression("pytorch_lightning", wide, adamw),
        train_dataloaders=loader,
        num_timed=5,
    )

    first, second = seen.phases
    assert second.relative_time == 1.0
    assert first.relative_time is not None
    assert first.relative_time < 0.7
    assert first.step_seconds is not None
