"""What a plan says of a run, and that a user's objects stay as they are."""

import copy
import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lighter_freezers import (
    Freezer,
    GradualUnfreezing,
    PhaseRecorder,
    plan,
)
from lighter_freezers.planning.comparison import compare
from lighter_freezers.planning.phase_meter import PhaseRecord
from lighter_freezers.planning.values import Plan, PlannedPhase, total_lines
from tests.lab import NAMESPACES, NormNet, adamw, batches, regression, sgd, trainer
from tests.planning.small_plans import COUNTS, changes, planned

METRIC = {"monitor": "val/loss", "below": 0.5}


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_timeline_has_every_transition(namespace: str) -> None:
    """Steps and epochs, whichever comes first, in the order of the run."""
    callbacks = [
        Freezer(name_starts_with="layer1.", until_epoch=2),
        Freezer(name_starts_with="layer2.", from_step=5, until_step=11),
        Freezer(names="head.bias", until_epoch=1, until_step=3),
    ]
    seen = planned(callbacks, namespace, max_epochs=4)

    assert (seen.num_steps, seen.steps_per_epoch) == (16, 4)
    assert changes(seen.phases) == [
        ("step 0", ("starts with frozen layer1, head.bias",)),
        ("step 3", ("thaws head.bias",)),
        ("step 5", ("freezes layer2",)),
        ("step 8", ("thaws layer1",)),
        ("step 11", ("thaws layer2",)),
    ]
    assert [(phase.epoch, phase.end_step) for phase in seen.phases] == [
        (0, 3),
        (0, 5),
        (1, 8),
        (2, 11),
        (2, 16),
    ]
    assert [phase.num_trainable for phase in seen.phases] == [152, 153, 81, 153, 225]
    assert seen.warnings == seen.undated == ()


def test_what_each_rule_matched() -> None:
    """The names, and a summary of them."""
    (rule,) = planned([Freezer(patterns="*.bias", except_names="head.bias", until_step=2)]).rules

    assert rule.names == ("network.layer1.bias", "network.layer2.bias", "network.layer10.bias")
    assert (rule.summary, rule.num_parameters) == ("layer1.bias, layer2.bias, layer10.bias", 24)


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ({"max_epochs": 3}, 12),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 6),
        ({"max_epochs": 3, "limit_train_batches": 3}, 9),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 6),
        ({"max_epochs": -1, "max_steps": 7}, 7),
        ({"max_epochs": 2, "max_steps": 7}, 7),
        ({"max_epochs": 1, "max_steps": 7}, 4),
    ],
)
def test_the_length_is_that_of_the_run(options: dict[str, Any], num_steps: int) -> None:
    """As many optimizer steps as the Trainer makes."""
    real = trainer("pytorch_lightning", **options)
    real.fit(regression("pytorch_lightning"), batches(), batches())

    assert planned([], **options).num_steps == real.global_step == num_steps


def test_nothing_of_the_user_is_touched(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, buffers, flags, optimizer, random numbers, callbacks and files are as they were."""
    from pytorch_lightning.loggers import TensorBoardLogger

    monkeypatch.chdir(tmp_path)
    model = regression("pytorch_lightning", NormNet, sgd)
    callbacks = [Freezer(name_starts_with="backbone", until_step=2), PhaseRecorder()]
    options = {"callbacks": callbacks, "logger": TensorBoardLogger("logs"), "enable_checkpointing": True}
    real = trainer("pytorch_lightning", **options)
    before = (copy.deepcopy(model.state_dict()), list(real.callbacks), dict(vars(callbacks[0])))
    draws = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    plan(real, model, train_dataloaders=batches(), **COUNTS)

    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before[0].items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert model._trainer is None
    assert (list(real.callbacks), dict(vars(callbacks[0]))) == before[1:]
    assert torch.equal(draws[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == draws[1:]
    assert list(tmp_path.iterdir()) == []
    real.fit(model, batches(), batches())  # and the run is that of a Trainer which was never planned
    assert real.global_step == 4


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_epochs": -1, "max_steps": -1}, ValueError, "This run has no end"),
        ({"max_epochs": 1, "limit_train_batches": 0}, RuntimeError, "This run takes no step"),
        ({"callbacks": [Freezer(patterns="*")]}, RuntimeError, "nothing trains"),
        ({"callbacks": [Freezer(names="heed.bias")]}, ValueError, "head.bias"),
    ],
)
def test_a_run_that_cannot_be_planned_is_refused(options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        planned(options.pop("callbacks", []), **options)


def test_a_plan_survives_json() -> None:
    seen = planned([Freezer(name_starts_with="layer1.", until_metric=METRIC, until_step=3)])

    assert Plan.from_dict(json.loads(json.dumps(seen.as_dict()))) == seen


def test_the_text_shows_all_of_it() -> None:
    text = str(planned([Freezer(name_starts_with="layer1.", until_metric=METRIC, until_step=3)]))

    assert text.startswith("Regression: 225 parameters, 4 steps, 4 an epoch\n")
    assert "Freezer['layer1.' until step 3 until val/loss < 0.5]: layer1 (2 tensors, 72 parameters)" in text
    assert "  step 3 (epoch 0); or as soon as val/loss < 0.5: thaws layer1\n" in text
    assert text.endswith("Warnings\n  none")


def test_totals_compare_with_a_run_in_which_everything_trains() -> None:
    """A schedule that ends with nothing frozen, one that never does, and none at all."""
    half = planned([Freezer(name_starts_with=["layer1.", "layer2."], until_step=2)])
    whole = planned([Freezer(name_starts_with=["layer1.", "layer2."])])
    none = planned([])

    assert half.everything == whole.everything == none.everything
    assert half.everything is not None
    assert replace(half.everything, forward_flops=None) == measured(none.phases[0])
    assert 0 < (half.everything.forward_flops or 0) < (half.everything.flops or 0)
    flops = [phase.flops or 0 for phase in half.phases]
    assert total_lines(half)[0].startswith(
        f"this schedule does {(flops[0] + flops[1]) / 2 / flops[1]:.0%} of "
    )
    assert f"does {flops[0] / flops[1]:.0%} of the operations of training everything" in total_lines(whole)[0]
    assert "peak 100%" in total_lines(half)[0]
    assert "peak 100%" not in total_lines(whole)[0]
    assert total_lines(none)[0].startswith("this schedule does 100% of ")


def measured(phase: PlannedPhase) -> PhaseRecord:
    costs = ("flops", "gradient_bytes", "optimizer_bytes", "activation_bytes", "num_trainable", "trains")
    return PhaseRecord(0, 0, **{name: getattr(phase, name) for name in costs})


def test_progress_names_each_phase() -> None:
    """With the round; `plan` in a terminal shows it."""
    said: list[str] = []
    callbacks = [Freezer(name_starts_with="layer1.", until_step=2)]
    plan(
        trainer("pytorch_lightning", callbacks=callbacks),
        regression("pytorch_lightning"),
        train_dataloaders=batches(),
        num_rounds=1,
        num_timed=0,
        progress=said.append,
    )

    assert said == [f"measuring, round 1 of 1: the phase from step {step}" for step in (0, 2)]


def test_rates_are_those_of_each_phase() -> None:
    """By the layers of each optimizer group, with the factor of a rule; said once while they stay."""
    half = Freezer(name_starts_with="layer1.", until_step=2, unfreeze_lr_factor=0.5)
    seen = planned([half, Freezer(name_starts_with="layer10.", until_step=3)])

    assert [dict(phase.learning_rates) for phase in seen.phases] == [
        {"layer2 to head": 0.01},
        *[{"layer2 to head": 0.01, "layer1": 0.005}] * 2,
    ]
    assert "step 2: layer2 to head 0.01, layer1 0.005\n\nTotals" in str(seen)


def test_a_phase_that_a_run_has_not_recorded_is_named() -> None:
    """A run that was killed has phases which it reached, and wrote no record of."""
    seen = planned([Freezer(name_starts_with="layer1.", until_step=2)])
    assert compare(seen, []).missing == tuple(
        f"step {step} of the plan: not measured; the run may have ended before or within this phase"
        for step in (0, 2)
    )


def test_several_optimizer_steps_in_a_batch_are_counted() -> None:
    """Manual optimisation with two optimizers: the Trainer counts the steps of both."""
    import pytorch_lightning as pl

    class Two(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.one, self.other = torch.nn.Linear(8, 1), torch.nn.Linear(8, 1)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer, layer in zip(self.optimizers(), (self.one, self.other), strict=True):
                optimizer.zero_grad()
                self.manual_backward(layer(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [sgd(self.one.parameters()), sgd(self.other.parameters())]

    callbacks = [Freezer(names="other.bias", until_step=6)]
    real = trainer("pytorch_lightning", callbacks=callbacks, max_epochs=2)
    model = Two()
    seen = plan(real, model, train_dataloaders=batches(), **COUNTS)
    real.fit(model, batches())

    assert seen.num_steps == real.global_step == 16
    assert [phase.step for phase in seen.phases] == [0, 6]


def test_what_a_run_left_frozen_thaws_in_the_plan_of_the_next() -> None:
    """The copy remembers what the original does; what the user froze stays frozen."""
    model = regression("pytorch_lightning", optimizer=adamw)
    model.network.layer2.bias.requires_grad = False
    first = trainer("pytorch_lightning", callbacks=[Freezer(name_starts_with=["layer1.", "layer2."])])
    first.fit(model, batches(), batches())
    callbacks = [Freezer(name_starts_with=["layer1.", "layer2."], until_step=2)]
    seen = plan(
        trainer("pytorch_lightning", callbacks=callbacks), model, train_dataloaders=batches(), **COUNTS
    )

    assert [phase.num_trainable for phase in seen.phases] == [81, 217]


def test_a_share_of_the_run_is_that_of_one_of_several_processes() -> None:
    """Half of six steps, its middle third, and one bound that comes too late."""
    options: dict[str, Any] = {"max_epochs": 3, "devices": 2, "strategy": "ddp"}
    half = planned([Freezer(name_starts_with="layer1.", until_step="50%")], **options)
    third = planned([Freezer(name_starts_with="layer1.", windows=[["34%", "67%"]])], **options)
    late = planned([Freezer(name_starts_with="layer1.", until_step=8)], **options)

    assert [phase.step for phase in half.phases] == [0, 3]
    assert [phase.step for phase in third.phases] == [0, 2, 4]
    [said] = [each for each in late.warnings if "Freezer" in each]
    assert said.endswith("never thaws: the run ends at step 6, in epoch 2")


@pytest.mark.parametrize(
    "callback",
    [
        Freezer(name_starts_with="layer1.", until_metric={"monitor": "val/loss", "below": 0.0}),
        Freezer(name_starts_with="layer1.", until_step=900),
        GradualUnfreezing(stages=[{"thaw": "head", "until_epoch": 9}, {"thaw": "*"}]),
    ],
    ids=["metric", "late", "stages"],
)
def test_the_end_of_a_plan_stops_no_run(callback: Any) -> None:
    """Only what the run itself would not come to is a warning."""
    assert not [each for each in planned([callback], max_epochs=3).warnings if "was stopped" in each]


def test_several_processes_share_the_batches() -> None:
    """Four batches an epoch are two for each of two processes; nothing is started to find out."""
    seen = planned(
        [Freezer(name_starts_with="layer1.", until_epoch=1)], max_epochs=3, devices=2, strategy="ddp"
    )

    assert (seen.num_steps, seen.steps_per_epoch) == (6, 2)
    assert [phase.step for phase in seen.phases] == [0, 2]
