"""What each policy chooses and at which rates: by its published formula, and as loops written by hand."""

import logging
import math
import random
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import (
    AutoFreeze,
    AutoRgn,
    BlockCycling,
    FreezeOut,
    FreezeStateLogger,
    GradualUnfreezing,
    LayerPolicy,
    Lisa,
    Misa,
    Spectrum,
    Window,
    plan,
)
from lighter_freezers.engine import Moment
from lighter_freezers.policies.spectrum import best_of_each_kind, signal_to_noise
from lighter_freezers.policies.untrained import looks_untrained
from tests.lab import adamw, batches, regression, trainer
from tests.policies.policy_lab import LONE, NUM_STEPS, POLICIES, Run, Tower, parts

UNITS = ("0", "1", "2", "3")


def window(index: int, seed: int = 0, **given: Any) -> Window:
    options = {"step": 3 * index, "units": UNITS, "training": frozenset(UNITS), **given}
    return Window(index, random=random.Random(f"{seed}/{index}"), **options)


def by_hand(draw: Any, *, factors: Any = None, num_steps: int = NUM_STEPS) -> dict[str, torch.Tensor]:
    """A loop that sets flags itself, drops the state of what stops, and scales rates of groups by hand."""
    torch.set_num_threads(1)
    module = regression(LONE, Tower, adamw)
    named = dict(module.network.named_parameters())
    units = {name: name.split(".")[1] if "blocks" in name else name.split(".")[0] for name in named}
    optimizer = adamw([{"params": [each]} for each in named.values()])
    data = [batch for _ in range(3) for batch in batches()]
    for step, batch in enumerate(data[:num_steps]):
        training = draw(step)
        for (name, parameter), group in zip(named.items(), optimizer.param_groups, strict=True):
            parameter.requires_grad_(units[name] in training)
            if units[name] not in training:
                parameter.grad = None
                optimizer.state.pop(parameter, None)
            group["lr"] = 0.01 * (factors(units[name], step) if factors else 1.0)
        nn.functional.mse_loss(module.network(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {f"network.{name}": each.detach() for name, each in named.items()}


def assert_equal(run: Run, weights: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(each, weights[name]) for name, each in run.weights.items())


def test_lisa_is_the_loop_written_by_hand() -> None:
    def draw(step: int) -> set[str]:
        return {*random.Random(f"5/{step // 3}").sample(UNITS, 2), "stem", "norm", "head"}

    assert_equal(Run([Lisa(num_blocks=2, every_n_steps=3, seed=5)]), by_hand(draw))


def test_block_cycling_is_the_loop_written_by_hand() -> None:
    run = Run([BlockCycling(every_n_steps=3, order=["2", 0, "3", "0"])])
    assert_equal(run, by_hand(lambda step: {["2", "0", "3", "0"][step // 3]}))


def test_freeze_out_is_the_loop_written_by_hand() -> None:
    """Rates by the formula of the paper with the half that its text lacks; frozen at the end of each."""
    order = ["stem", "0", "1", "2", "3", "head"]
    ends = {unit: (0.6 + 0.4 * place / 5) ** 3 for place, unit in enumerate(order)} | {"norm": 1.0}

    def factors(unit: str, step: int) -> float:
        share = step / 12
        return (1 + math.cos(math.pi * min(1.0, share / ends[unit]))) / 2 / ends[unit]

    def draw(step: int) -> set[str]:
        return {unit for unit, end in ends.items() if end > step // 2 * 2 / 12}

    run = Run([FreezeOut(12, t0=0.6, every_n_steps=2)])
    assert run.training[-1] == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert_equal(run, by_hand(draw, factors=factors))


def test_orders_of_block_cycling() -> None:
    def order(policy: BlockCycling) -> list[str]:
        return [unit for index in range(8) for unit in policy.choose(window(index))]

    drawn = order(BlockCycling(3))
    assert sorted(drawn[:4]) == sorted(drawn[4:]) == list(UNITS)
    assert drawn == order(BlockCycling(3)) != order(BlockCycling(3, seed=1))
    assert order(BlockCycling(3, order="ascending")) == [*UNITS, *UNITS]
    assert order(BlockCycling(3, order="descending")) == [*UNITS[::-1], *UNITS[::-1]]


def test_auto_freeze_keeps_from_the_first_block_that_still_changes() -> None:
    policy, memory = AutoFreeze(3), dict[str, Any]()
    first = dict(zip(UNITS, (1.0, 2.0, 4.0, 1.0), strict=True))
    assert policy.choose(window(0, memory=memory)) == list(UNITS)
    assert policy.choose(window(1, memory=memory, measured=first)) == list(UNITS)  # nothing to compare with
    now = dict(zip(UNITS, (1.1, 2.2, 2.0, 0.2), strict=True))  # changes of 0.1, 0.1, 0.5, 0.8: median 0.3
    assert policy.choose(window(2, memory=memory, measured=now)) == ["2", "3"]
    later = window(3, memory=memory, measured={"2": 2.0, "3": 0.1}, training=frozenset({"2", "3"}))
    assert policy.choose(later) == ["3"]
    last = window(4, memory=memory, measured={"3": 0.1}, training=frozenset({"3"}))
    assert policy.choose(last) == ["3"]


def test_misa_prefers_what_had_large_gradients_within_its_share() -> None:
    sizes = {"0": 10, "1": 10, "2": 10, "3": 70}
    policy, counts = Misa(share=0.2, sharpness=8.0), dict.fromkeys(UNITS, 0)
    for index in range(200):
        memory = {"averages": {"1": [0.2 * 0.6, 1], "2": [0.2 * 0.3, 1]}}
        chosen = list(policy.choose(window(index, prepared=sizes, memory=memory)))
        for unit in chosen:
            counts[unit] += 1
        assert sum(sizes[unit] for unit in chosen) <= 20 or len(chosen) == 1
    assert counts["1"] > counts["2"] > counts["0"]


def test_misa_averages_and_weighs_as_published() -> None:
    """A moving average with 0.8 of the past, corrected for its start; weights exp(G^2), at most exp(5)."""
    policy, sizes, memory = Misa(share=1.0), dict.fromkeys(UNITS, 1), dict[str, Any]()
    for index, norm in enumerate((2.0, 1.0)):
        list(policy.choose(window(index, prepared=sizes, memory=memory, measured={"3": norm})))
    average, num_windows = memory["averages"]["3"]
    importance = average / (1 - 0.8**num_windows)
    assert importance == pytest.approx((0.8 * 0.2 * 2.0 + 0.2 * 1.0) / (1 - 0.8**2))
    memory = {"averages": {"1": [0.2 * 1.5, 1], "2": [0.2 * 9.0, 1]}}
    draws = [next(iter(policy.choose(window(index, prepared=sizes, memory=memory)))) for index in range(4000)]
    likely = {unit: draws.count(unit) / len(draws) for unit in UNITS}
    total = 2 + math.exp(1.5**2) + math.exp(5)
    assert likely["1"] == pytest.approx(math.exp(1.5**2) / total, abs=0.02)
    assert likely["2"] == pytest.approx(math.exp(5) / total, abs=0.02)


def test_spectrum_scores_signal_over_noise() -> None:
    """By the formula, on a matrix whose singular values are known; a low-rank signal scores above noise."""
    values = torch.tensor([10.0, 6.0, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5])
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(12, 8, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    sigma = float(values.quantile(0.75) - values.quantile(0.25)) / 1.349
    limit = sigma * (1 + math.sqrt(8 / 12))
    expected = float(values[values > limit].sum() / values[values <= limit].sum() / 10)
    assert signal_to_noise(left @ values.diag() @ right) == pytest.approx(expected, rel=1e-3)
    scores = {"h.0.up": 1.0, "h.1.up": 3.0, "h.2.up": 2.0, "h.3.up": 2.0, "h.0.down": 0.1, "h.1.down": 0.2}
    assert best_of_each_kind(scores, 50) == ["h.1.up", "h.2.up", "h.1.down"]
    assert best_of_each_kind(scores, 1) == ["h.1.up", "h.1.down"]


def test_auto_rgn_gives_the_largest_relative_norm_the_full_rate() -> None:
    policy = AutoRgn(3)
    moment = Moment(7, 0)
    assert policy.rate("0", moment, window(0)) == 1.0
    first = window(1, measured={"0": 0.5, "1": 2.0})
    assert policy.choose(first) == UNITS
    assert [policy.rate(unit, moment, first) for unit in ("0", "1", "2")] == [0.25, 1.0, 1.0]
    later = window(2, measured={"1": 1.0, "2": 0.1}, memory=first.memory)  # where 0 did not train
    assert policy.choose(later) == UNITS
    assert [policy.rate(unit, moment, later) for unit in ("0", "1", "2")] == [0.5, 1.0, 0.1]


class Odd(LayerPolicy):
    """As a user writes it: the odd and the even blocks by turns."""

    def choose(self, window: Window) -> Any:
        return [unit for unit in window.units if int(unit) % 2 == window.index % 2]


def test_a_policy_of_ones_own_is_one_method() -> None:
    seen = [parts(names) for names in Run([Odd(4)]).training]
    outer = [["stem", *blocks, "norm", "head"] for blocks in (["0", "2"], ["1", "3"], ["0", "2"])]
    assert seen == [each for each in outer for _ in range(4)]


class Wrong(LayerPolicy):
    def choose(self, window: Window) -> Any:
        return ["seven"]


class Frozen(Tower):
    def __init__(self) -> None:
        super().__init__()
        self.blocks.requires_grad_(False)


@pytest.mark.parametrize(
    ("callback", "network", "message"),
    [
        (lambda: Wrong(2), Tower, r"Wrong.choose returned seven, and the units are 0, 1, 2 and 1 more"),
        (lambda: Lisa(5), Tower, r"num_blocks=5, and 4 blocks can train"),
        (lambda: Lisa(2), Frozen, r"Lisa finds no unit that can train.*4 units, all frozen by the user"),
        (lambda: BlockCycling(order=["9"]), Tower, r"BlockCycling.choose returned 9"),
    ],
)
def test_what_cannot_be_meant_is_an_error_before_the_first_step(
    callback: Any, network: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Run([callback()], network=network)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Lisa(every_n_steps="20"), TypeError, "every_n_steps"),
        (lambda: Lisa(0), ValueError, "num_blocks"),
        (lambda: Lisa(rest="drop"), ValueError, "rest must be one of train, freeze"),
        (lambda: Lisa(optimizer_state="drop"), ValueError, "optimizer_state"),
        (
            lambda: BlockCycling(order="upwards"),
            ValueError,
            "order must be one of random, ascending, descending",
        ),
        (lambda: BlockCycling(order=[]), ValueError, "order is empty"),
        (lambda: AutoFreeze(percentile=120), ValueError, "percentile"),
        (lambda: FreezeOut(100, t0=0.0), ValueError, "t0"),
        (lambda: FreezeOut(100, how="quartic"), ValueError, "how must be one of linear, squared, cubic"),
        (lambda: Spectrum(top_percent=250), ValueError, "at most 100"),
        (lambda: Misa(share=0), ValueError, "share"),
        (lambda: Misa(smoothing=1), ValueError, "smoothing=1 would never learn"),
    ],
)
def test_arguments_are_checked_when_they_are_read(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_random_embeddings_are_told_from_trained_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    random_table = 0.02 * torch.randn(500, 64, generator=generator)
    uniform = torch.rand(10, 64, generator=generator) - 0.5
    direction = torch.randn(1, 64, generator=generator)
    trained = random_table + 0.02 * torch.rand(500, 1, generator=generator) * direction
    assert [looks_untrained(each) for each in (random_table, uniform, torch.zeros(10, 64))] == [True] * 3
    assert not looks_untrained(trained)


def test_an_untrained_head_that_would_freeze_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    Run([BlockCycling(every_n_steps=3)])
    [warned] = [each.getMessage() for each in caplog.records if "looks untrained" in each.getMessage()]
    assert warned.startswith(
        "BlockCycling freezes network.stem.weight for the whole run"
    )  # the head is small
    caplog.clear()
    Run([BlockCycling(every_n_steps=3, rest="train")])
    assert "looks untrained" not in caplog.text


@pytest.mark.parametrize("name", POLICIES)
def test_a_plan_shows_what_a_run_does_or_may_do(name: str) -> None:
    module = regression(LONE, Tower, adamw)
    runner = trainer(LONE, callbacks=[POLICIES[name]()], max_epochs=3)
    planned = plan(runner, module, batches(), num_rounds=1, num_timed=0)
    run = Run([POLICIES[name]()])
    changes = [change for phase in planned.phases[1:] for change in phase.changes]
    title = name.split(",")[0]
    assert any(f"{title} decides by what it measures" in each for each in planned.warnings) == (
        title in ("AutoFreeze", "Misa", "AutoRgn")
    )
    if title in ("AutoFreeze", "Misa", "AutoRgn"):
        assert bool(changes) == (title == "Misa")  # the others freeze, or set rates, by what they measure
        assert all(each.startswith(("for example ", "may ")) for each in changes)
        return
    steps = [0, *(s for s in range(1, NUM_STEPS) if run.training[s] != run.training[s - 1])]
    assert [phase.step for phase in planned.phases] == steps
    sizes = {n.partition(".")[2]: p.numel() for n, p in module.named_parameters()}
    assert [phase.num_trainable for phase in planned.phases] == [
        sum(sizes[each] for each in run.training[step]) for step in steps
    ]


def test_a_plan_with_a_metric_beside_a_policy_ends() -> None:
    """The windows of a policy go on without end; what comes after a metric is not one of them."""
    from lighter_freezers import Freezer

    freezer = Freezer(name_starts_with="stem", until_metric={"monitor": "val/loss", "below": 0.1})
    runner = trainer(LONE, callbacks=[Lisa(1, 3), freezer], max_epochs=3)
    planned = plan(runner, regression(LONE, Tower, adamw), batches(), num_rounds=1, num_timed=0)
    assert [phase.when for phase in planned.undated] == ["when val/loss < 0.1"]


def test_the_timeline_and_the_log_show_each_window(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    caplog.set_level(logging.INFO, "lighter_freezers")
    Run([Lisa(2, 3, seed=5), FreezeStateLogger()])
    said = [each.getMessage() for each in caplog.records if "Lisa trains" in each.getMessage()]
    assert said == [
        f"step {s}: Lisa trains 2 of 4 units: {u}" for s, u in ((3, "0, 3"), (6, "1, 2"), (9, "2, 3"))
    ]
    assert "held by Lisa" in caplog.text


@pytest.mark.parametrize(
    "policy",
    [lambda: Lisa(2, every_n_steps=3, rest="freeze"), lambda: BlockCycling(every_n_steps=3), Misa],
    ids=["Lisa", "BlockCycling", "Misa"],
)
def test_a_policy_and_stages_that_leave_nothing_are_named(policy: Any) -> None:
    """The first stage trains the head, which these policies freeze: an error before the first step."""
    runner = trainer(LONE, callbacks=[GradualUnfreezing(every_n_steps=3), policy()], max_epochs=4)
    with pytest.raises(RuntimeError, match="At step 0 every parameter is frozen, .* by .*GradualUnfreezing"):
        runner.fit(regression(LONE, Tower, adamw), batches(), batches())
