"""One policy for arguments that changed before a resume: what survives, what begins anew, what is said."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, LoraRankScheduler
from lighter_freezers.lora.sites import find_lora_sites
from tests.callbacks.block_net import BlockNet
from tests.lab import TinyNet, adamw, batches, frozen_layers, recorder, regression, trainer
from tests.lora.lora_lab import mixed

LONE = "pytorch_lightning"
MET = {"monitor": "val/loss", "below": 1.0e9}
PLATEAU = {"monitor": "val/loss", "plateau": {"patience": 5, "min_delta": 1.0e9}}
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def resumed(
    folder: Path,
    before: list[Any],
    after: list[Any],
    network: Callable[[], Any] = TinyNet,
    read: Callable[[Any, Any], Any] = lambda _, module: frozen_layers(module),
    edit: Callable[[dict[str, Any]], object] = lambda checkpoint: None,
) -> tuple[list[Any], list[str]]:
    """Two epochs of four steps with some callbacks, two more with others; what these saw, and was said."""
    first = trainer(LONE, callbacks=before, max_epochs=2)
    first.fit(regression(LONE, network, adamw), batches(), batches())
    first.save_checkpoint(folder / "cut.ckpt")
    checkpoint = torch.load(folder / "cut.ckpt", weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, folder / "cut.ckpt")
    seen = recorder(LONE, read)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(LONE, callbacks=[*after, seen], max_epochs=4).fit(
            regression(LONE, network, adamw), batches(), batches(), ckpt_path=folder / "cut.ckpt"
        )
    return seen.seen, [str(each.message) for each in caught if "checkpoint" in str(each.message).lower()]


def freezer(**arguments: Any) -> Freezer:
    return Freezer(**{"name_starts_with": "layer2", **arguments})


@pytest.mark.parametrize(
    "change",
    [
        {"on_missing": "warn"},
        {"restore_on_end": True},
        {"frozen_norms": "train"},
        {"optimizer_state": "reset"},
    ],
    ids=str,
)
def test_a_latch_survives_what_is_neither_what_nor_when(change: dict[str, Any], tmp_path: Path) -> None:
    """What the metric had thawed goes on training, and there is nothing to say."""
    seen, said = resumed(tmp_path, [freezer(until_metric=MET)], [freezer(until_metric=MET, **change)])
    assert seen == [[]] * 8
    assert said == []


@pytest.mark.parametrize(
    ("bound", "rate", "is_told"),
    [
        ({"until_step": 4}, {"unfreeze_lr_growth": 2.0}, True),
        ({"until_epoch": 1}, {"unfreeze_lr_growth": 2.0}, True),
        ({"until_epoch": 1}, {"warmup_steps": 9}, True),
        ({"until_step": 4}, {"warmup_steps": 9}, False),
        ({"until_step": 4}, {}, False),
        ({"until_step": 8}, {"unfreeze_lr_growth": 2.0}, False),
    ],
    ids=str,
)
def test_a_rate_that_begins_to_move_anew_is_named(
    bound: dict[str, int], rate: dict[str, Any], is_told: bool, tmp_path: Path
) -> None:
    """Of a Freezer that the checkpoint does not know: its steps do not tell the epoch of the release."""
    new = freezer(name_starts_with="layer10", unfreeze_lr_factor=0.1, **bound, **rate)
    _, said = resumed(tmp_path, [freezer()], [freezer(), new])
    assert [f"no state for {new}" in text for text in said] == [True] * is_told


def test_another_condition_begins_anew_and_both_are_named(tmp_path: Path) -> None:
    """The schedule is that of the new arguments."""
    never = {"monitor": "val/loss", "below": -1.0}
    seen, said = resumed(tmp_path, [freezer(until_metric=MET)], [freezer(until_metric=never)])
    assert seen == [["layer2"]] * 8
    assert [text.partition(":")[0] for text in said] == [
        "The checkpoint has no state for Freezer['layer2' until val/loss < -1]",
        "The checkpoint has state of Freezer['layer2' until val/loss < 1e+09], which this run does not have",
    ]


def test_a_latch_without_an_owner_is_named(tmp_path: Path) -> None:
    """Its Freezer is gone; the other one is as it was."""
    gone = Freezer(name_starts_with="head", until_metric=MET)
    _, said = resumed(tmp_path, [freezer(until_metric=MET), gone], [freezer(until_metric=MET)])
    (text,) = said
    assert "has state of Freezer['head' until val/loss < 1e+09], which" in text


def test_progress_towards_a_plateau_is_a_loss_too(tmp_path: Path) -> None:
    """It had waited for two checks."""
    _, said = resumed(tmp_path, [freezer(until_metric=PLATEAU)], [freezer(until_step=100)])
    (text,) = said
    assert "has state of Freezer['layer2' until val/loss on a plateau of 5 checks], which" in text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([{"until_step": 3}], [{"until_step": 6}]),
        ([{"until_step": 3}], []),
        ([{"until_metric": {"monitor": "val/loss", "below": -1.0}}], [{"until_step": 2}]),  # not met yet
        ([{}], [{"until_metric": MET, "until_step": 7}]),  # over before it could be met
        ([{"until_step": 3}], [{"windows": [[0, 2], [3, 5], [20, 30]]}]),
        ([{}], [{"until_step": 3, "until_epoch": 1}]),
        ([{"until_epoch": 2}], [{"until_epoch": 1, "unfreeze_lr": 0.01}]),  # a rate without a course
    ],
    ids=str,
)
def test_nothing_is_said_where_nothing_is_lost(
    before: list[dict[str, Any]], after: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A schedule is a function of step and epoch; a condition that was not met remembers nothing."""
    other = Freezer(name_starts_with="head", until_step=2)
    callbacks = [[other, *(freezer(**each) for each in arguments)] for arguments in (before, after)]
    assert resumed(tmp_path, *callbacks)[1] == []


def rates(fit: Any, _: Any) -> float:
    """The rate of the next step."""
    return round(float(fit.optimizers[0].param_groups[-1]["lr"]), 6)


def test_a_warm_up_goes_on_where_the_step_of_the_thaw_is_known(tmp_path: Path) -> None:
    """From step 7, as the new schedule says, though there is no state for it."""
    before, after = (freezer(until_step=step, unfreeze_lr=0.01, warmup_steps=10) for step in (5, 7))
    seen, said = resumed(tmp_path, [before], [after], read=rates)
    assert seen == [round(0.001 * count, 6) for count in range(3, 11)]
    assert said == []


def test_a_warm_up_that_has_to_begin_again_is_named(tmp_path: Path) -> None:
    """At which step an epoch began is not known."""
    before, after = ({"until_epoch": epoch, "unfreeze_lr": 0.01, "warmup_steps": 10} for epoch in (2, 1))
    seen, (text,) = resumed(tmp_path, [freezer(**before)], [freezer(**after)], read=rates)
    assert seen[0] == 0.002
    assert "no state for Freezer['layer2' until epoch 1]: " in text


def test_a_stage_of_gradual_unfreezing_survives_other_rates(tmp_path: Path) -> None:
    """The stages that plateaus have brought stay."""
    plateau = {"monitor": "val/loss", "patience": 1, "min_delta": 1.0e9}
    before, after = (GradualUnfreezing(plateau=plateau, lr_decay=decay) for decay in (2.0, 3.0))
    seen, said = resumed(
        tmp_path, [before], [after], BlockNet, lambda _, m: sum(p.requires_grad for p in m.parameters())
    )
    assert said == []
    assert seen[0] == 6  # head, norm and the last block: the plateau of the first run is remembered


def operation(name: str, value: Any = None, **when: Any) -> dict[str, Any]:
    return {"name": name, "value": value, **when}


def test_operations_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    """Whatever stands before them now; what is gone and what is new among them is named."""
    done = [
        operation("freeze_layer", "layer1", max_wait_iters=1),
        operation("set_lr", 0.5, max_wait_iters=1),
        operation("scale_lr", 0.5, max_wait_iters=1),
    ]
    now = [operation("set_lr", 0.25, max_wait_iters=9), done[2], {**done[0], "max_wait_iters": 5}]
    seen, said = resumed(
        tmp_path,
        [LayerOperations(done)],
        [LayerOperations(now)],
        read=lambda t, m: (rates(t, m), frozen_layers(m)),
    )
    assert seen == [(0.25, ["layer1"])] * 8
    assert [text.partition(":")[2].split(":")[0].strip() for text in said] == [
        "'set_lr 0.25'",
        "'set_lr 0.5', which this run does not have",
    ]


def test_operations_may_be_added_behind_and_nothing_is_said(tmp_path: Path) -> None:
    """Also other arguments, and a `desc`."""
    done = [
        operation("freeze_layer", "layer1", max_wait_iters=1),
        operation("set_lr", 0.5, trigger_loss=-1.0),
    ]
    now = [{**done[0], "desc": "first"}, operation("unfreeze_layer", "layer1", max_wait_iters=9)]
    seen, said = resumed(
        tmp_path, [LayerOperations(done)], [LayerOperations(now, average_over=3, on_failure="skip")]
    )
    assert seen == [["layer1"]] * 2 + [[]] * 6
    assert said == []


def ranks(_: Any, module: Any) -> list[int]:
    return [site.factors.rank for site in find_lora_sites(module).values()]


def test_rank_entries_follow_the_same_policy(tmp_path: Path) -> None:
    """Done by waiting: stays done. For a step: its new step counts. What changed is named."""
    before = [
        {"max_wait_iters": 1, "rank_pattern": {"wte": 5}},
        {"max_wait_iters": 1, "rank_pattern": {"proj": 3}},
        {"step": 4, "rank_pattern": {"h.0.fc": 6}},
    ]
    after = [
        {"max_wait_iters": 1, "rank_pattern": {"wte": 5}, "desc": "the same"},
        {"max_wait_iters": 100, "rank_pattern": {"proj": 2}},
        {"step": 10, "rank_pattern": {"h.0.fc": 2}},
    ]
    callbacks = [[LoraRankScheduler(each)] for each in (before, after)]
    seen, said = resumed(tmp_path, *callbacks, network=mixed, read=ranks)
    assert {3, 5, 6} <= set(seen[0])
    assert 6 not in seen[3]
    assert [text.partition(": '")[2][:9] for text in said] == ["{proj: 2}", "{proj: 3}"]


def test_lists_without_state_and_without_owner_are_named(tmp_path: Path) -> None:
    """Operations instead of ranks."""
    operations = LayerOperations([operation("set_lr", 0.5, max_wait_iters=1)])
    entries = [{"max_wait_iters": 1, "rank_pattern": {"wte": 5}}]
    _, said = resumed(tmp_path, [LoraRankScheduler(entries)], [operations], network=mixed)
    assert [text.partition(":")[0].rstrip(",") for text in said] == [
        "The checkpoint has no state for LayerOperations",
        "The checkpoint has state of LoraRankScheduler[default], which this run does not have",
    ]


def test_state_of_an_older_version_is_refused(tmp_path: Path) -> None:
    """Its key was the name of a class; validation needs no state and goes on."""
    old = {
        "players": {
            "FreezeRule(title=\"Freezer['layer2' until val/loss < 1e+09]\", selector=...)#1": {
                "is_holding": False,
                "released_at": 4,
                "best": None,
                "num_without_progress": 0,
                "has_fired": True,
            }
        },
        "validated_at": 8,
        "acts": {},
        "losses": {},
    }

    def age(checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"] = {"Conductor": old}

    rules = [[freezer(until_metric=MET)] for _ in range(3)]
    with pytest.raises(
        RuntimeError, match=r"older lighter_freezers, .* `del checkpoint\['callbacks'\]\['Cond"
    ):
        resumed(tmp_path, rules[0], rules[1], edit=age)
    with pytest.warns(UserWarning, match="Please add the following callbacks"):
        trainer(LONE, callbacks=rules[2]).validate(
            regression(LONE, optimizer=adamw), batches(), ckpt_path=tmp_path / "cut.ckpt", verbose=False
        )


def test_without_any_state_a_condition_begins_anew_and_is_named(tmp_path: Path) -> None:
    """As after the `del` that the refusal proposes."""
    seen, said = resumed(
        tmp_path,
        [freezer(until_metric=MET)],
        [freezer(until_metric=MET), Freezer(name_starts_with="head", until_step=9)],
        edit=lambda checkpoint: checkpoint["callbacks"].clear(),
    )
    assert seen[0] == ["head", "layer2"]
    (text,) = said
    assert text.startswith("The checkpoint has no state for Freezer['layer2' until val/loss < 1e+09]: ")


def test_another_format_is_refused(tmp_path: Path) -> None:
    """Of a later version, say."""

    def age(checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"]["lighter_freezers.engine"]["format"] += 1

    with pytest.raises(RuntimeError, match="has the format 2, and this version reads 1: resume with"):
        resumed(tmp_path, [freezer(until_metric=MET)], [freezer(until_metric=MET)], edit=age)
