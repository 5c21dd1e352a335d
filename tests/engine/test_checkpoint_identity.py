"""Keys of checkpoint state: what and when, in plain data; and what becomes of lists that changed."""

import math
from typing import Any

import pytest

from lighter_freezers import Freezer
from lighter_freezers.engine.checkpoint_identity import (
    changed_entries,
    entry_key,
    find_states,
    match_done,
    numbered,
    refuse_other_format,
    rule_key,
    warn_of_changes,
)
from lighter_freezers.engine.rules import active_rules_of
from lighter_freezers.engine.triggers import LossOrWait, Schedule, parse_metric_trigger
from lighter_freezers.selection.select import ParameterSelector

BELOW = {"monitor": "val/loss", "below": 2.5}
PLATEAU = {"monitor": "val/loss", "plateau": {"patience": 3, "min_delta": 0.1}}
BASE: dict[str, Any] = {"name_starts_with": ["a.", "b."], "until_step": 5, "until_metric": BELOW}


def key(**arguments: Any) -> str:
    (active,) = active_rules_of(Freezer(**arguments).rules())
    return active.key


@pytest.mark.parametrize(
    "change",
    [
        {"on_missing": "warn"},
        {"on_overlap": "error"},
        {"restore_on_end": True},
        {"frozen_norms": "stats"},
        {"optimizer_state": "free"},
        {"optimizer_params": "error"},
        {"cut_gradient": "never"},
        {"unfreeze_lr": 0.1, "warmup_steps": 7},
        {"name_starts_with": ["b.", "a.", "b."]},
        {"from_step": 0},
        {"until_metric": {"monitor": "val/loss", "below": 2.5, "above": None}},
    ],
)
def test_what_is_neither_what_nor_when_leaves_the_key(change: dict[str, Any]) -> None:
    """Also the order of names, and what says the same in other words."""
    assert key(**{**BASE, **change}) == key(**BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"name_starts_with": ["a."]},
        {"except_names": "a.bias"},
        {"patterns": "*.c"},
        {"until_step": 6},
        {"until_step": None, "windows": [[0, 5]]},
        {"from_epoch": 1},
        {"until_metric": None},
        {"until_metric": {**BELOW, "below": 2.4}},
        {"until_metric": {**BELOW, "monitor": "val/acc"}},
        {"until_metric": {"monitor": "val/loss", "above": 2.5}},
        {"until_metric": PLATEAU},
    ],
)
def test_what_or_when_changes_the_key(change: dict[str, Any]) -> None:
    """Each part counts."""
    assert key(**{**BASE, **change}) != key(**BASE)


def test_a_name_is_no_prefix() -> None:
    """The same texts in another role select something else."""
    keys = {key(**{field: "*a"}) for field in ("names", "name_starts_with", "patterns")}
    assert len(keys) == 3


def test_keys_stay_short() -> None:
    """7,500 names, or 400 windows: the beginning of a text and a hash."""
    names = tuple(f"model.layers.{index}.self_attn.q_proj.weight" for index in range(7500))
    windows = tuple((10 * index, 10 * index + 5) for index in range(400))
    many = rule_key(ParameterSelector(names=names), Schedule(windows=windows), None)
    fewer = rule_key(ParameterSelector(names=names[:-1]), Schedule(windows=windows), None)

    assert len(many) < 60
    assert many.split("~")[0] == names[0][:32]
    assert many != fewer


def test_rules_that_agree_are_numbered_in_their_order() -> None:
    """However else they differ."""
    rules = [*Freezer(**BASE).rules(), *Freezer(**BASE, on_missing="warn").rules()]
    assert [active.key.rpartition("#")[2] for active in active_rules_of(rules)] == ["1", "2"]


def test_keys_of_this_format() -> None:
    """Whoever changes one of these raises FORMAT: checkpoints out there have them."""
    windows = Schedule(windows=((1, 2), (5, 7)))
    selector = ParameterSelector(names=("b", "a"), patterns=("*.c",), except_prefixes=("d.",))
    plateau = parse_metric_trigger("until_metric", PLATEAU)
    assert rule_key(selector, windows, None) == "a~d231797ba3a65f69"
    assert (
        rule_key(ParameterSelector(prefixes=("a.",)), Schedule(until_epoch=3), plateau)
        == "a.~da4d7b04f38aba64"
    )
    assert entry_key("attn.0: 8", [[("attn.0", 8)], 5, None], None) == "attn.0: 8~4275a11f08585777"
    assert (
        entry_key("set_lr 0.1", ["set_lr", 0.1], LossOrWait("val/loss", 2.5, 10))
        == "set_lr 0.1~18728d0efc6f77d2@08d8afb80bc8ff83"
    )


def waiting(*names: str, below: float = 2.0) -> dict[str, str]:
    """Key -> title of entries that wait for a loss."""
    return {
        name_key: name
        for name, name_key in zip(
            names,
            numbered(entry_key(name, name, LossOrWait("val/loss", below)) for name in names),
            strict=True,
        )
    }


def test_what_is_at_once_is_so_in_any_words() -> None:
    """A loss that does not matter is no part of the key."""
    conditions = [LossOrWait("a", math.inf), LossOrWait("b", None, 0), LossOrWait("b", 2.0, 0)]
    assert len({entry_key("x", "x", condition) for condition in conditions}) == 1
    assert entry_key("x", "x", LossOrWait("a", None, 3)) == entry_key("x", "x", LossOrWait("b", None, 3))


@pytest.mark.parametrize(
    ("now", "skipped", "gone"),
    [
        ("ab", "", ""),
        ("abcd", "", ""),
        ("ba", "", ""),
        ("xab", "x", ""),
        ("axc", "x", "b"),
        ("a", "", "b"),
        ("xyz", "xy", "ab"),
    ],
)
def test_what_changed_in_a_list_of_which_two_are_done(now: str, skipped: str, gone: str) -> None:
    """What stands among what is done and was not, and what was done and is gone."""
    done = waiting("a", "b")
    assert changed_entries(waiting(*now), done) == (list(skipped), list(gone))
    assert changed_entries(waiting(*now, below=9.0), done) == (list(skipped), list(gone))


def test_what_and_when_comes_before_what_alone() -> None:
    """Two that do the same are told apart by when."""
    first, second = waiting("a", below=1.0), waiting("a", below=2.0)
    assert match_done(second, [*first, *second]) == {key: key for key in second}


def test_entries_for_a_step_are_not_matched_by_what_alone() -> None:
    """Another step is another entry: its time may still come."""
    old, new = (entry_key("a: 8", [[("a", 8)], step, None], None) for step in (5, 900))
    assert match_done([old], [new]) == {}
    assert changed_entries({new: "a"}, {old: "a"}) == ([], [])


def test_state_goes_to_the_list_with_the_most_in_common() -> None:
    """The same list first; another kind never."""
    states = {
        "one": {"kind": "operations", "done": waiting("a", "b")},
        "two": {"kind": "operations", "done": waiting("c")},
        "ranks": {"kind": "ranks of default", "done": waiting("e")},
    }
    owners = {"new": ("operations", waiting("c", "d")), "one": ("operations", waiting("a", "b", "x"))}
    assert find_states(owners, states) == {"one": "one", "new": "two"}
    assert find_states({"e": ("operations", waiting("a", "e"))}, states) == {"e": "one"}
    assert find_states({"e": ("ranks of other", waiting("e"))}, states) == {}


@pytest.mark.parametrize("state", [{"format": 0}, {"format": 2}, {"players": {}}])
def test_another_format_is_refused(state: dict[str, Any]) -> None:
    """In one sentence that says what to do."""
    with pytest.raises(RuntimeError, match=r"resume with the version that saved it, or .* `del checkpoint"):
        refuse_other_format(state)


def test_warnings_name_everything_once() -> None:
    """One each; none for nothing."""
    warn_of_changes([], [])
    with pytest.warns(UserWarning, match="The checkpoint has") as caught:
        warn_of_changes(["A", "A", "B"], ["C", "D", "E", "F", "G", "H"])
    texts = [str(each.message) for each in caught]
    assert [text.partition(":")[0] for text in texts] == [
        "The checkpoint has no state for A, B",
        "The checkpoint has state of C, D, E, F and 2 more, which this run does not have",
    ]
