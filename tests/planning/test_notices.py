"""What has no date, what looks wrong, and what LoRA does, in a plan."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import (
    Freezer,
    LayerOperations,
    LoraPhases,
    LoraRankScheduler,
    apply_lora,
    plan,
)
from tests.lab import adamw, batches, regression, trainer
from tests.planning.small_plans import COUNTS, changes, planned

METRIC = {"monitor": "val/loss", "below": 0.5}


def test_conditions_on_a_metric_have_no_date() -> None:
    """They say what they wait for, and what would change; a limit in steps is the date at the latest."""
    callbacks = [
        Freezer(name_starts_with="layer1.", until_metric=METRIC, until_step=6),
        Freezer(name_starts_with="layer2.", until_metric={"monitor": "val/loss", "plateau": {"patience": 2}}),
    ]
    seen = planned(callbacks, max_epochs=3)

    assert changes(seen.phases) == [
        ("step 0", ("starts with frozen layer1, layer2",)),
        ("step 6", ("thaws layer1",)),
    ]
    assert seen.phases[1].or_when == ("val/loss < 0.5", "val/loss on a plateau of 2 checks")
    assert changes(seen.undated) == [("when val/loss on a plateau of 2 checks", ("thaws layer2",))]
    assert (seen.undated[0].step, seen.undated[0].num_trainable) == (None, 225)
    assert seen.undated[0].flops == planned([]).phases[0].flops


def test_operations_are_planned_to_their_end() -> None:
    """Those with a wait have a date; the others follow one another, each with its loss."""
    operations = [
        {"name": "freeze_layer", "value": "layer1", "trigger_loss": float("inf")},
        {"name": "freeze_layer", "value": "layer2", "trigger_loss": 3.0, "max_wait_iters": 5},
        {"name": "unfreeze_layer", "value": "layer1", "trigger_loss": 2.0},
        {"name": "unfreeze_layer", "value": "layer2", "max_wait_iters": 3},
    ]
    seen = planned([LayerOperations(operations)], max_epochs=3)

    assert [(phase.when, phase.changes[-1]) for phase in seen.phases] == [
        ("step 0", "freezes layer1"),
        ("step 5", "freezes layer2"),
    ]
    assert seen.phases[1].or_when == ("val/loss < 3",)
    assert [(phase.when, phase.changes[-1]) for phase in seen.undated] == [
        ("when val/loss < 2", "thaws layer1"),
        ("3 steps later", "thaws layer2"),
    ]


WARNINGS = {
    "a rule that never holds": (
        [Freezer(names="head.bias", from_step=50)],
        "never holds: the run ends at step 4",
    ),
    "a thaw after the last step": (
        [Freezer(names="head.bias", until_epoch=9)],
        "never thaws: the run ends at",
    ),
    "an operation after the last step": (
        [LayerOperations([{"name": "freeze_layer", "value": "layer1", "max_wait_iters": 30}])],
        "LayerOperations is due at step 30, but the run ends at step 4",
    ),
    "a phase that trains nothing": (
        [
            LayerOperations(
                [
                    {"name": "freeze_layer", "value": layer, "max_wait_iters": 1}
                    for layer in ("layer1", "layer2", "layer10", "head")
                ]
            )
        ],
        "at step 4, the run fails: At step 4 every parameter is frozen, so nothing trains",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_what_looks_wrong_is_said(name: str) -> None:
    callbacks, expected = WARNINGS[name]
    options = {"max_epochs": 2} if "nothing" in name else {}
    warnings = planned(callbacks, **options).warnings

    assert any(expected in warning for warning in warnings), warnings


def test_a_lost_gain_and_an_unknown_parameter_are_said() -> None:
    """What the run itself would warn of, and what no optimizer trains."""
    model = regression("pytorch_lightning", optimizer=lambda parameters: adamw(list(parameters)[2:]))
    seen = plan(
        trainer(
            "pytorch_lightning", callbacks=[Freezer(name_starts_with=["layer1", "layer2."], until_step=2)]
        ),
        model,
        train_dataloaders=batches(),
        **COUNTS,
    )
    assert any("layer10" in warning for warning in seen.warnings)

    (unknown,) = plan(trainer("pytorch_lightning"), model, train_dataloaders=batches(), **COUNTS).warnings
    assert unknown == "layer1: they are in no optimizer, so they get gradients and never train"


def lora_network() -> nn.Module:
    from peft import LoraConfig

    from lighter_freezers import GPT, GPTConfig

    config = GPTConfig(vocab_size=16, block_size=8, n_layer=2, n_head=2, n_embd=8)
    return apply_lora(GPT(config), LoraConfig(r=2, target_modules=["c_attn", "c_fc"]))


class Tokens(torch.utils.data.Dataset[Any]):
    """Thirty-two sequences of eight tokens, as GPTModule takes them."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(index, index + 9) % 16
        return {"input_ids": ids[:-1], "targets": ids[1:]}


@pytest.fixture
def lora() -> Any:
    from lighter_freezers import GPTModule

    torch.manual_seed(0)
    return GPTModule(lora_network()), torch.utils.data.DataLoader(Tokens(), batch_size=8)


def test_ranks_and_phases_of_lora_are_planned(lora: Any) -> None:
    """Rank schedules with their ranks, phases with what trains in them."""
    model, loader = lora
    ranks = LoraRankScheduler([{"step": 3, "rank_pattern": {"attn.0": 4}}])
    seen = plan(
        trainer("pytorch_lightning", callbacks=[ranks], max_epochs=2),
        model,
        train_dataloaders=loader,
        **COUNTS,
    )
    phases = LoraPhases("attn->mlp->both", phase1_end=2, phase2_end=5)
    other = plan(
        trainer("pytorch_lightning", callbacks=[phases], max_epochs=2),
        model,
        train_dataloaders=loader,
        **COUNTS,
    )

    assert [(phase.step, phase.num_trainable) for phase in seen.phases] == [(0, 288), (3, 352)]
    assert seen.phases[1].ranks == {"attn.0": 4}
    assert [(phase.step, phase.num_trainable) for phase in other.phases] == [(0, 128), (2, 160), (5, 288)]


def test_rules_that_only_set_rates_or_hold_again_are_no_mistake() -> None:
    """The first holds nothing by intention; the second has thawed once, and holds when the run ends."""
    callbacks = [
        Freezer(name_starts_with="layer1.", until_step=0, unfreeze_lr_factor=0.5),
        Freezer(name_starts_with="layer2.", windows=[[0, 2], [3, 9]]),
    ]
    assert not [each for each in planned(callbacks).warnings if "never" in each]


def test_what_trains_again_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four phases, two of them new: two traced steps, and the same figures where the same trains."""
    from lighter_freezers.planning import phase_meter

    traced = []
    meter = phase_meter.StepMeter
    monkeypatch.setattr(phase_meter, "StepMeter", lambda *given: (traced.append(1), meter(*given))[1])
    seen = planned([Freezer(name_starts_with="layer1.", windows=[[0, 2], [4, 6]])], max_epochs=2)

    assert len(traced) == 2
    assert [phase.flops for phase in seen.phases[:2]] == [phase.flops for phase in seen.phases[2:]]
    assert seen.phases[0].flops < seen.phases[1].flops


def test_arguments_stand_in_the_order_of_fit() -> None:
    runner = trainer("pytorch_lightning", max_epochs=1)
    by_place = plan(runner, regression("pytorch_lightning"), batches(), batches(), **COUNTS)
    by_name = plan(runner, regression("pytorch_lightning"), train_dataloaders=batches(), **COUNTS)
    assert by_place.phases[0].flops == by_name.phases[0].flops
