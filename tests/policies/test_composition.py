"""Policies beside Freezers, stages and each other: what composes, and what is refused at the start."""

import os
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import (
    AutoFreeze,
    AutoRgn,
    BlockCycling,
    FreezeOut,
    Freezer,
    GradualUnfreezing,
    LayerPolicy,
    Lisa,
    Misa,
    Spectrum,
    Window,
    plan,
)
from lighter_freezers.engine import Moment
from tests.distributed.run_ranks import run_ranks
from tests.lab import WIDTH, adamw, batches, regression, trainer
from tests.policies.policy_lab import LONE, POLICIES, Run, Tower, parts

BLOCKS = {"0", "1", "2", "3"}
PAIRS = list(combinations_with_replacement(POLICIES, 2))


def blocks_of(run: Run) -> list[set[str]]:
    """The blocks of which anything trained, at each step."""
    return [BLOCKS & {*parts(names)} for names in run.training]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_policies_compose_only_where_one_sets_rates_alone(one: str, other: str, tmp_path: Path) -> None:
    """All others would choose against each other: an error before the first step, with the way out."""

    def both() -> list[Any]:
        return [POLICIES[one](), POLICIES[other]()]

    if (one == "AutoRgn") == (other == "AutoRgn"):
        words = "scale the rates" if one == "AutoRgn" else "both choose which of the same layers train"
        with pytest.raises(RuntimeError, match=f"{words}.*Keep one of them"):
            Run(both())
        return
    run = Run(both(), save=[(5, tmp_path / "5.ckpt")])
    assert Run(both(), ckpt_path=tmp_path / "5.ckpt").equals(run, 5)
    if one not in ("AutoFreeze", "Misa"):  # these choose by gradients, which follow the rates
        assert run.training == Run([POLICIES[one]()]).training


class Half(LayerPolicy):
    """One of two blocks by turns, of the lower or the upper half."""

    first = 0

    def units(self, model: Any) -> Any:
        found = super().units(model)
        return {title: found[title] for title in (str(self.first), str(self.first + 1))}

    def choose(self, window: Window) -> Any:
        return [window.units[window.index % 2]]


class Upper(Half):
    first = 2


def test_policies_of_other_units_compose() -> None:
    both = Run([Half(3), Upper(2)])
    expected = [{str(step // 3 % 2), str(2 + step // 2 % 2)} for step in range(12)]
    assert blocks_of(both) == expected


def test_a_policy_that_would_freeze_the_units_of_another_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"Upper freezes what is in none of its units .* units of Half"):
        Run([Half(3), Upper(2, rest="freeze")])
    Run([BlockCycling(3), AutoRgn(2)])  # what it scales may as well be frozen


def test_two_rates_multiply() -> None:
    """FreezeOut anneals what AutoRgn has scaled."""
    both, alone = Run([AutoRgn(6), FreezeOut(12, every_n_steps=2)]), Run([FreezeOut(12, every_n_steps=2)])
    assert [seen[1] for seen in both.seen[:6]] == [seen[1] for seen in alone.seen[:6]]
    shares = [one / other for one, other in zip(both.seen[7][1], alone.seen[7][1], strict=True) if other]
    assert max(shares) == pytest.approx(1.0)
    assert min(shares) < 0.5


FREEZERS: dict[str, Any] = {
    "for the whole run": lambda: [Freezer(patterns="layers:block.0-1")],
    "from below, until step 7": lambda: [Freezer(patterns="layers:block.0-1", until_step=7)],
    "from step 4": lambda: [Freezer(patterns="layers:block.2-3", from_step=4)],
    "stages": lambda: [
        GradualUnfreezing(
            stages=[{"thaw": ["layers:block.2-3", "layers:head"], "until_step": 7}, {"thaw": "*"}]
        )
    ],
    "twice": lambda: [Freezer(patterns="layers:block.1-2", windows=[[2, 5], [7, 10]])],
}


@pytest.mark.parametrize(
    "beside",
    ["stages", *(pytest.param(each, marks=pytest.mark.wide) for each in FREEZERS if each != "stages")],
)
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_chooses_among_what_is_free(name: str, beside: str, tmp_path: Path) -> None:
    """Whatever holds blocks, at the edge of a window or inside: something trains, and a resume is exact."""

    def both() -> list[Any]:
        return [*FREEZERS[beside](), POLICIES[name]()]

    run = Run(both(), save=[(step, tmp_path / f"{step}.ckpt") for step in (5, 8)])
    free, trained = blocks_of(Run(FREEZERS[beside]())), blocks_of(run)
    assert all(one <= other for one, other in zip(trained, free, strict=True))
    if name.startswith(("Lisa", "BlockCycling")):
        num_blocks = 2 if name == "Lisa" else 1
        assert [len(each) for each in trained[::3]] == [num_blocks] * 4
        assert all(trained)
    for step in (5, 8):
        assert Run(both(), ckpt_path=tmp_path / f"{step}.ckpt").equals(run, step), step


def test_block_cycling_passes_over_what_is_held() -> None:
    """The next block of the order has its turn, and the order goes on as it was."""
    run = Run([Freezer(name_starts_with="blocks.1.", until_step=9), BlockCycling(3, order="ascending")])
    assert blocks_of(run) == [{each} for each in "000222222333"]


def test_a_window_is_decided_again_once_others_hold_all_of_it() -> None:
    """Not where they hold a part, or what it has not chosen."""
    run = Run([Freezer(name_starts_with="blocks.1.", from_step=4), BlockCycling(3, order="ascending")])
    assert blocks_of(run) == [{each} for each in "000122222333"]
    part = Run([Freezer(name_starts_with="blocks.1.up", from_step=4), BlockCycling(3, order="ascending")])
    assert blocks_of(part) == [{each} for each in "000111222333"]


def test_auto_freeze_compares_what_has_gradients() -> None:
    """A block that a Freezer holds neither stops it nor counts, and is not frozen for good."""
    held = Run([Freezer(name_starts_with="blocks.2."), AutoFreeze(3)], max_epochs=6)
    assert blocks_of(held)[0] == {"0", "1", "3"}
    assert blocks_of(held)[-1] == {"3"}
    policy, memory = AutoFreeze(3), dict[str, Any]()
    for index, norms in enumerate(({"0": 1.0, "3": 1.0}, {"0": 1.1, "3": 2.0})):
        window = Window(
            index, 3 * index, ("0", "1", "2", "3"), frozenset(BLOCKS), measured=norms, memory=memory
        )
        chosen = policy.choose(window)
    assert chosen == ["1", "2", "3"]


def test_auto_rgn_beside_lisa_knows_a_block_that_is_drawn_again() -> None:
    """It has the rate of its last measurement, not the full one."""
    run = Run([Lisa(2, 3, seed=5), AutoRgn(3)], max_epochs=6)
    seen: set[str] = set()
    for step in range(3, 24, 3):
        drawn = dict(zip(*run.seen[step], strict=True))
        again = [drawn[name] for name in seen & drawn.keys() - {*run.training[step - 1]}]
        assert not again or min(again) < 0.01
        seen |= {*run.training[step - 1]}
    assert len(seen) == len([*run.module.parameters()])


def test_auto_rgn_does_not_measure_what_is_zero() -> None:
    """Relative to a bias that begins at 0 all other rates would be 0."""

    def zeroed(module: Any) -> None:
        torch.nn.init.zeros_(module.network.stem.bias)

    run = Run([AutoRgn(1)], prepare=zeroed)
    rates = dict(zip(*run.seen[1], strict=True))
    assert rates["stem.bias"] == 0.01
    assert 1e-4 < max(rate for name, rate in rates.items() if name != "stem.bias") <= 0.01


@pytest.mark.parametrize(
    ("policy", "beside"),
    [
        (lambda: Lisa(2, 3, seed=5), lambda: Freezer(name_starts_with="blocks.2.", until_step=5)),
        (
            lambda: BlockCycling(3, order="ascending"),
            lambda: Freezer(name_starts_with="blocks.1.", from_step=4),
        ),
    ],
    ids=["Lisa", "BlockCycling"],
)
def test_a_plan_shows_both(policy: Any, beside: Any) -> None:
    """Also a window that is decided again."""
    module = regression(LONE, Tower, adamw)
    planned = plan(
        trainer(LONE, callbacks=[beside(), policy()], max_epochs=3),
        module,
        batches(),
        num_rounds=1,
        num_timed=0,
    )
    run = Run([beside(), policy()])
    steps = [0, *(s for s in range(1, 12) if run.training[s] != run.training[s - 1])]
    assert [phase.step for phase in planned.phases] == steps


def test_freeze_out_leaves_something_to_the_last_step() -> None:
    """Beside a Freezer that holds the head, the last block stays, at the rate 0 once it has ended."""
    head = Freezer(patterns=["layers:head", "norm*"])
    run = Run([head, FreezeOut(12, t0=0.6, every_n_steps=2)])
    assert blocks_of(run)[-1] == {"3"}
    assert {*run.seen[-1][1]} == {0.0}


def test_policies_measure_in_double_precision() -> None:
    Run([AutoFreeze(3), AutoRgn(3)], precision="64-true", max_epochs=1)


def answering(**methods: Any) -> Any:
    return type("Own", (LayerPolicy,), {"choose": lambda self, window: window.units, **methods})


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ({"choose": lambda self, window: "12"}, TypeError, r"Own.choose returned '12', which is no list"),
        ({"choose": lambda self, window: None}, TypeError, r"Own.choose returned None"),
        ({"choose": lambda self, window: [0]}, ValueError, r"Own.choose returned 0, and the units are 0, 1"),
        ({"units": lambda self, model: []}, TypeError, r"Own.units returned list. Return a mapping"),
        ({"units": lambda self, model: {"a": "blocks.0."}}, TypeError, r"Own.units has 'blocks.0.' in 'a'"),
        ({"units": lambda self, model: {0: []}}, TypeError, r"Own.units has the title 0"),
        ({"rate": lambda self, *_: -1.0}, ValueError, r"Own.rate returned -1.0 for '0'"),
        ({"rate": lambda self, *_: float("nan")}, ValueError, r"Own.rate returned nan for '0'"),
        ({"rest": "drop"}, ValueError, r"rest must be one of train, freeze"),
        ({"statistic": "norm"}, ValueError, r"statistic must be one of gradient_norm"),
    ],
)
def test_what_a_policy_of_ones_own_cannot_return(
    methods: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Run([answering(**methods)(3)])


class Odd(nn.Module):
    """No modules in it repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_blocks_are_named_where_they_are_not_found() -> None:
    """As the message without them asks for."""
    with pytest.raises(ValueError, match=r"no blocks: .* Say which they are, as in blocks="):
        Run([BlockCycling(3)], network=Odd)
    named = {"blocks": ["first", "second"]}
    in_turn = Run([BlockCycling(3, order="descending", **named)], network=Odd)
    assert [names[0].split(".")[0] for names in in_turn.training[::3]] == ["second", "first"] * 2
    for policy in (Lisa(1, 3, **named), AutoFreeze(3, **named), FreezeOut(12, **named), Spectrum(**named)):
        assert "head.weight" in Run([policy], network=Odd).training[-1]
    assert all(Run([Misa(0.3, 3, **named)], network=Odd).training)
    with pytest.raises(ValueError, match="AutoRgn scales each tensor"):
        AutoRgn(3, **named)


def test_the_base_class_says_what_it_lacks() -> None:
    with pytest.raises(NotImplementedError, match="LayerPolicy defines no `choose"):
        Run([LayerPolicy(3)])


def test_rates_alone_are_a_policy() -> None:
    """As a user writes it: warm-up of each block; it goes with Lisa."""

    class Slow(LayerPolicy):
        freezes = False

        def choose(self, window: Window) -> Any:
            return window.units

        def rate(self, unit: str, moment: Moment, window: Window) -> float:
            return min(1.0, (moment.optimizer_step + 1) / 4)

    run = Run([Slow(None), Lisa(2, 3)])
    assert [max(rates) for _, rates in run.seen[:1]] == [0.01]
    rates = [
        dict(zip(*seen, strict=True))[f"blocks.{min(parts(seen[0])[1:])}.up.weight"] for seen in run.seen[:4]
    ]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01])


def beside_a_freezer_on_ranks() -> dict[str, Any]:
    from pytorch_lightning.strategies import DDPStrategy

    results = {}
    for name, policy in POLICIES.items():
        strategy, loader = DDPStrategy(process_group_backend="gloo"), batches(32, int(os.environ["RANK"]), 2)
        run = Run([*FREEZERS["twice"](), policy()], loader=loader, devices=2, strategy=strategy)
        results[name] = {"training": run.training, "weights": run.weights}
    return results


@pytest.mark.wide
def test_two_ranks_choose_among_what_is_free_as_one_process(tmp_path: Path) -> None:
    first, second = run_ranks(beside_a_freezer_on_ranks, tmp_path, 2)
    for name, policy in POLICIES.items():
        one = Run([*FREEZERS["twice"](), policy()], loader=batches())
        assert first[name]["training"] == second[name]["training"] == one.training, name
        for key, weight in first[name]["weights"].items():
            assert torch.equal(weight, second[name]["weights"][key]), (name, key)
            # the first steps of Adam turn the rounding of a gradient near 0 into a step
            assert torch.allclose(weight, one.weights[key], atol=1e-4), (name, key)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
