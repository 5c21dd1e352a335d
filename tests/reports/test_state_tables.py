"""Counts of what trains, by component, and their tables."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lighter_freezers.engine import ledger
from lighter_freezers.reports.state_tables import (
    Census,
    ComponentState,
    changes_table,
    component_states,
    state_table_markdown,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(2)  # 4 elements
        self.attn = nn.Linear(2, 2)  # 6
        self.ln_2 = nn.LayerNorm(2)  # 4
        self.mlp = nn.Linear(2, 2)  # 6


class TiedGPT(nn.Module):
    """Blocks between an embedding of 10 elements and a head tied to it."""

    def __init__(self, num_blocks: int = 2) -> None:
        super().__init__()
        self.wte = nn.Embedding(5, 2)
        self.h = nn.ModuleList(Block() for _ in range(num_blocks))
        self.ln_f = nn.LayerNorm(2)
        self.lm_head = nn.Linear(2, 5, bias=False)
        self.lm_head.weight = self.wte.weight


def states_of(model: nn.Module) -> dict[str, ComponentState]:
    return {state.name: state for state in component_states(model)}


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ((8, 8, 0, 0), "trainable"),
        ((8, 0, 8, 0), "frozen"),
        ((8, 0, 0, 8), "user-frozen"),
        ((8, 0, 4, 4), "frozen"),
    ]
    + [((8, 4, 4, 0), "partial"), ((8, 4, 0, 4), "partial"), ((0, 0, 0, 0), "trainable")]
    + [((8, 4, 0, 4, 4), "LoRA only"), ((8, 4, 0, 4, 3), "partial"), ((8, 8, 0, 0, 4), "trainable")],
)
def test_state_follows_from_the_counts(counts, state):
    """The state says whether all of it trains, some, nothing yet, or nothing ever."""
    assert ComponentState("attn.0", *counts).state == state


def test_a_tied_weight_counts_once_under_its_first_name():
    """The elements of all components add up to those of the model, and the tied head has none of its own."""
    model = TiedGPT()
    states = states_of(model)
    assert sum(state.num_parameters for state in states.values()) == sum(
        p.numel() for p in model.parameters()
    )
    assert states["wte"].num_parameters == 10
    assert "lm_head" not in states


def test_held_and_user_frozen_are_told_apart():
    """What a holder froze would train again; what the user froze would not, also while it is held."""
    model = TiedGPT()
    model.h[0].attn.requires_grad_(False)
    held = [*model.h[0].attn.parameters(), *model.h[1].mlp.parameters()]
    ledger.hold(held, "test")
    states = states_of(model)
    assert (states["attn.0"].state, states["attn.0"].num_user_frozen) == ("user-frozen", 6)
    assert (states["mlp.1"].state, states["mlp.1"].num_held) == ("frozen", 6)
    ledger.release(held, "test")
    assert states_of(model)["mlp.1"].state == "trainable"


def test_recount_returns_what_changed_and_equals_a_new_count():
    """A recount after holding one bias gives its component before and after, and the census is as if new."""
    model = TiedGPT()
    census = Census(model)
    ledger.hold([model.h[1].attn.bias], "test")
    ((old, new),) = census.recount(["h.1.attn.bias"])
    assert (old.state, new.state, new.num_trainable) == ("trainable", "partial", 4)
    assert census.states == component_states(model)
    assert census.total.num_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_recount_knows_a_tied_weight_by_each_of_its_names():
    """A change of `lm_head.weight` is one of `wte`; both names together still count once."""
    model = TiedGPT()
    census = Census(model)
    ledger.hold([model.wte.weight], "test")
    changes = census.recount(["lm_head.weight", "wte.weight"])
    assert [(new.name, new.num_held) for _, new in changes] == [("wte", 10)]
    assert census.recount(["lm_head.weight"]) == []


def test_many_components_are_shown_by_block():
    """A census of 40 blocks has a row per block, which follows the changes inside it."""
    model = TiedGPT(40)
    census = Census(model)
    ledger.hold(model.h[7].attn.parameters(), "test")
    census.recount(["h.7.attn.weight", "h.7.attn.bias"])
    rows = {row.name: row for row in census.rows}
    assert len(rows) == 42
    assert (rows["h.7"].state, rows["h.7"].num_parameters, rows["h.7"].num_held) == ("partial", 20, 6)


def test_shares_of_a_model_without_parameters():
    """Nothing to freeze is 0 % frozen, not a division by zero."""
    total = Census(nn.Identity()).total
    assert (total.frozen_share, total.trainable_share) == (0.0, 1.0)


def test_buffers_and_integer_weights_do_not_train():
    """An integer parameter, as in a quantised model, counts as frozen by the user."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    model.register_buffer("count", torch.zeros(7))
    (state,) = component_states(model)
    assert (state.num_parameters, state.state) == (3, "user-frozen")


def test_markdown_table_has_a_line_per_component_and_a_total():
    """The table gives name, state and counts with thousands apart, and the frozen share below."""
    states = [ComponentState("wte", 3000, 0, 3000, 0), ComponentState("mlp.0", 1000, 1000, 0, 0)]
    assert state_table_markdown(states).splitlines() == [
        "| component | state | parameters | trainable |",
        "| --- | --- | ---: | ---: |",
        "| wte | frozen | 3,000 | 0 |",
        "| mlp.0 | trainable | 1,000 | 1,000 |",
        "| total | 75 % frozen | 4,000 | 1,000 |",
    ]


def test_the_table_of_changes_is_short() -> None:
    """A line for each kind of change, by blocks; what stays as it was has none."""
    names = [f"{part}.{block}" for block in range(40) for part in ("attn", "mlp")]
    before = [ComponentState(name, 10, 0, 10, 0) for name in names] + [ComponentState("ln_f", 5, 5, 0, 0)]
    after = [replace(state, num_trainable=10, num_held=0) for state in before[40:-1]]
    after = [*before[:40], *after[:-1], replace(after[-1], num_trainable=4, num_held=6), before[-1]]

    assert [line.split() for line in changes_table(before, after).splitlines()] == [
        ["state", "layers", "parameters", "share"],
        ["frozen", "->", "trainable", "h.20-38", "380", "47.2%"],
        ["frozen", "->", "partial", "h.39", "20", "2.5%"],
    ]
    at_start = [line.split() for line in changes_table([], before).splitlines()[1:]]
    assert at_start == [["frozen", "h", "800", "99.4%"], ["trainable", "ln_f", "5", "0.6%"]]
