"""Schedules of ranks: how they are read, and what is due when. No model but for the names."""

from typing import Any

import pytest

from lighter_freezers import GPT, apply_lora
from lighter_freezers.engine.triggers import Moment
from lighter_freezers.lora.rank_plan import RankPlan, resolved_ranks
from lighter_freezers.lora.rank_schedule import parse_rank_schedule
from lighter_freezers.lora.sites import find_lora_sites

PATTERN = {"attn.0": 8}


def plan(*entries: dict[str, Any]) -> RankPlan:
    return RankPlan(
        parse_rank_schedule([{"rank_pattern": PATTERN, **entry} for entry in entries], "val/loss")
    )


def due(made: RankPlan, step: int, epoch: int = 0) -> list[int]:
    """Do what is due, and say which entries that was."""
    moment = Moment(step, epoch)
    indices = list(made.due(moment))
    made.finish(indices, moment)
    return indices


def test_steps_and_epochs_have_their_own_time() -> None:
    """Each once, and late is better than never; in the order of the steps, whatever the order of the list."""
    made = plan({"step": 5}, {"step": 3}, {"epoch": 1})

    assert made.next_step(Moment(0, 0)) == 3
    assert due(made, 2) == []
    assert due(made, 3) == [1]
    assert due(made, 4, epoch=1) == [2]
    assert made.next_step(Moment(4, 1)) == 5
    assert due(made, 9, epoch=1) == [0]
    assert due(made, 9, epoch=2) == []
    assert due(plan({"step": 5}, {"step": 3}), 7) == [1, 0]


def test_losses_are_a_queue() -> None:
    """Only the first is looked at; the wait counts from the one before; one value may do for several."""
    made = plan(
        {"trigger_loss": 3.0, "max_wait_iters": 10},
        {"trigger_loss": 2.0, "max_wait_iters": 4},
        {"trigger_loss": 2.5},
        {"trigger_loss": float("inf")},
        {"max_wait_iters": 2},
    )
    assert made.looks_at_loss
    assert made.next_step(Moment(0, 0)) == 10
    made.see(3.0)
    assert due(made, 4) == []  # strictly below
    made.see(2.9)
    assert due(made, 5) == [0]
    assert made.next_step(Moment(5, 0)) == 9
    made.see(float("nan"))
    assert due(made, 8) == []
    assert due(made, 9) == [1]
    made.see(2.4)
    assert due(made, 10) == [2, 3]
    assert not made.looks_at_loss
    assert due(made, 11) == []
    assert due(made, 12) == [4]


def test_its_state_survives_a_change_of_the_schedule() -> None:
    """What was done is not done again, what is new is; equal entries are counted."""
    made = plan({"step": 1}, {"step": 1}, {"step": 2}, {"max_wait_iters": 3})
    made.see(1.5)
    assert due(made, 1) == [0, 1]
    state = made.state()
    again = plan({"step": 2}, {"step": 1}, {"step": 1}, {"step": 1}, {"max_wait_iters": 3})
    again.remember(state)

    assert list(state["done"].values()) == ["{attn.0: 8} at step 1"] * 2
    assert (state["since"], state["value"]) == (0, 1.5)
    assert due(again, 2) == [3, 0]
    assert due(again, 3) == [4]


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        ([], ValueError, "schedule is empty"),
        ("attn.0", TypeError, "must be a list"),
        (["attn.0"], TypeError, r"schedule\[0\] must be a mapping"),
        ([{"step": 5}], TypeError, r"schedule\[0\].rank_pattern must map layers to ranks"),
        ([{"rank_pattern": PATTERN}], ValueError, "must say when, in one way.*none of them"),
        ([{"rank_pattern": PATTERN, "step": 1, "epoch": 1}], ValueError, "step, epoch"),
        ([{"rank_pattern": PATTERN, "step": 1, "trigger_loss": 2.0}], ValueError, "one way"),
        ([{"rank_pattern": PATTERN, "step": "5"}], TypeError, r"schedule\[0\].step must be a whole number"),
        ([{"rank_pattern": PATTERN, "step": -1}], ValueError, "counts from 0"),
        ([{"rank_pattern": PATTERN, "trigger_loss": "2.5"}], TypeError, "trigger_loss must be a number"),
        ([{"rank_pattern": {"attn.0": "8"}, "step": 5}], TypeError, "attn.0.*Remove the quotes"),
        ([{"rank_pattern": {"attn.0": 8.0}, "step": 5}], TypeError, "whole number"),
        ([{"rank_pattern": {"attn.0": -8}, "step": 5}], ValueError, "counts from 0"),
        ([{"rank_pattern": {"attn.0": None}, "step": 5}], TypeError, "whole numbers"),
        ([{"rank_patern": PATTERN, "step": 5}], ValueError, "'rank_patern'. Closest: 'rank_pattern'"),
    ],
)
def test_what_a_yaml_can_get_wrong(schedule: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_rank_schedule(schedule, "val/loss")


def test_null_is_as_good_as_nothing() -> None:
    (entry,) = parse_rank_schedule(
        [{"rank_pattern": PATTERN, "step": 0, "epoch": None, "desc": "begin"}], "val/loss"
    )

    assert entry.step == 0
    assert entry.description == "begin"


def resolved(pattern: dict[str, int], on_zero: Any = "drop", shrink: Any = "svd", **config: Any) -> Any:
    """The ranks of one entry on a GPT."""
    sizes = {"vocab_size": 64, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = apply_lora(GPT(sizes), {"r": 4, "target_modules": ["c_attn", "wte"], **config})
    (entry,) = parse_rank_schedule([{"step": 5, "rank_pattern": pattern}], "val/loss")
    return resolved_ranks(model, find_lora_sites(model), entry, on_zero, shrink)


def test_names_become_layers() -> None:
    assert resolved({"attn.*": 8, "wte": 2, r"h\.1\..*": 8}) == {
        "transformer.wte": 2,
        "transformer.h.0.attn.c_attn": 8,
        "transformer.h.1.attn.c_attn": 8,
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pattern": {"attn.0": 17}}, ValueError, "attn.0: 17} at step 5.*c_attn.*17 is impossible.*48 x 16"),
        ({"pattern": {"mlp.0": 4}}, ValueError, "no LoRA in it"),
        (
            {"pattern": {"attn.*": 8, "attn.0": 4}},
            ValueError,
            "two ranks: 'attn.\\*' says 8, 'attn.0' says 4",
        ),
        ({"pattern": {"wte": 0}, "on_zero": "merge"}, RuntimeError, "wte.*tied to another layer"),
        ({"pattern": {"wte": 2}, "shrink": "kfac", "use_dora": True}, ValueError, "kfac.*DoRA"),
    ],
)
def test_what_the_model_cannot_have(arguments: Any, error: type[Exception], message: str) -> None:
    """Known before anything trains."""
    with pytest.raises(error, match=message):
        resolved(**arguments)
