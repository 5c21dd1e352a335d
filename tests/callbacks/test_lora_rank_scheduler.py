"""The callback in real fits: what changes when, and what is said about it."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as lrs

from lighter_freezers import (
    Freezer,
    FreezeStateLogger,
    LoraRankScheduler,
    apply_lora,
)
from lighter_freezers.engine import ledger
from lighter_freezers.lora.sites import find_lora_sites
from tests.lab import NAMESPACES, adamw, batches, recorder, regression, trainer
from tests.lora.lora_lab import Mixed, mixed

LONE = "pytorch_lightning"


def ranks(module: Any) -> dict[str, int]:
    return {site.title: site.factors.rank for site in find_lora_sites(module).values()}


def fit(schedule: list[dict[str, Any]], namespace: str = LONE, *more: Any, **arguments: Any) -> Any:
    """Ranks of each optimizer step of two epochs of four, and the module."""
    options = arguments.pop("options", {})
    module = arguments.pop("module", None) or regression(namespace, network=mixed, optimizer=adamw)
    seen = recorder(namespace, lambda t, m: ranks(m), "on_before_optimizer_step")
    scheduler = LoraRankScheduler(schedule, **arguments)
    run = trainer(namespace, callbacks=[*more, scheduler, seen], max_epochs=2, **options)
    run.fit(module, batches(), batches())
    return seen.seen, module, run


def changes(seen: list[dict[str, int]]) -> dict[int, dict[str, int]]:
    """Step -> what is other than in the step before."""
    start = {"wte": 3, "h.0.fc": 3, "h.1.fc": 3, "conv": 3, "proj": 3}
    found = {}
    for step, (before, now) in enumerate(zip([start, *seen], seen, strict=False)):
        if before != now:
            found[step] = {name: rank for name, rank in now.items() if before[name] != rank}
    return found


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_ranks_change_when_the_schedule_says(namespace: str) -> None:
    """By step, epoch, loss and wait; with both Trainers."""
    seen, _, _ = fit(
        [
            {"step": 1, "rank_pattern": {"wte": 5, "h.0.fc": 6}},
            {"step": 3, "rank_pattern": {"conv": 0}},
            {"epoch": 1, "rank_pattern": {"conv": 2}},
            {"trigger_loss": 1.0e9, "rank_pattern": {"proj": 6}},
            {"max_wait_iters": 2, "rank_pattern": {"proj": 1}},
            {"trigger_loss": float("-inf"), "max_wait_iters": 1, "rank_pattern": {"wte": 0}},
        ],
        namespace,
    )

    assert changes(seen) == {
        1: {"wte": 5, "h.0.fc": 6},
        3: {"conv": 0},
        4: {"conv": 2, "proj": 6},  # after the first validation
        6: {"proj": 1},
        7: {"wte": 0},
    }


def test_at_once_and_never() -> None:
    """`.inf` and 0 wait for nothing; a loss that does not come is never met."""
    seen, _, _ = fit(
        [
            {"trigger_loss": float("inf"), "rank_pattern": {"wte": 5}},
            {"max_wait_iters": 0, "rank_pattern": {"proj": 5}},
            {"trigger_loss": -1.0, "rank_pattern": {"proj": 1}},
        ]
    )

    assert changes(seen) == {0: {"wte": 5, "proj": 5}}


def test_the_training_loss_will_do() -> None:
    """A mean of two steps, read one step later."""
    seen, _, _ = fit(
        [{"trigger_loss": 1.0e9, "rank_pattern": {"wte": 5}}], monitor="training_loss", average_over=2
    )

    assert list(changes(seen)) == [3]


def test_accumulated_gradients_are_not_lost() -> None:
    """Ranks change between optimizer steps only: two batches each here."""
    steps, module, _ = fit([{"step": 1, "rank_pattern": {"fc": 6}}], options={"accumulate_grad_batches": 2})

    assert changes(steps) == {1: {"h.0.fc": 6, "h.1.fc": 6}}
    assert len(steps) == 4


def test_optimizer_and_scheduler_notice_nothing() -> None:
    """The same groups, parameters and rates as a run without changes."""
    rates = {}
    for schedule in (
        [{"step": 99, "rank_pattern": {"fc": 6}}],
        [{"step": 2, "rank_pattern": {"fc": 6, "wte": 0}}],
    ):
        seen = recorder(
            LONE,
            lambda t, m: (
                [group["lr"] for group in t.optimizers[0].param_groups],
                [id(p) for p in m.parameters()] == [id(p) for p in t.optimizers[0].param_groups[0]["params"]],
            ),
        )
        module = regression(
            LONE,
            network=mixed,
            optimizer=adamw,
            scheduler=lambda o: {"scheduler": lrs.OneCycleLR(o, 0.05, total_steps=9), "interval": "step"},
        )
        fit(schedule, LONE, seen, module=module)
        rates[schedule[0]["step"]] = seen.seen

    assert rates[99] == rates[2]
    assert all(is_same for _, is_same in rates[2])


def test_an_optimizer_of_what_trains_gets_the_factors_that_a_freezer_held(caplog: Any) -> None:
    """Each once, though Freezer and schedule both ask for it, and under the name it has in the model."""

    def of_what_trains(parameters: Any) -> torch.optim.Optimizer:
        return adamw([each for each in parameters if each.requires_grad])

    caplog.set_level(logging.INFO)
    module = regression(LONE, network=mixed, optimizer=of_what_trains)
    freezer = Freezer(patterns="re:lora_", until_step=2)
    _, module, run = fit([{"step": 4, "rank_pattern": {"wte": 6}}], LONE, freezer, module=module)
    given = [id(each) for group in run.optimizers[0].param_groups for each in group["params"]]
    factors = [each for name, each in module.named_parameters() if "lora_" in name]
    assert sorted(given) == sorted({*given})
    assert {*given} >= {id(each) for each in factors}
    assert ranks(module)["wte"] == 6
    assert "parameters) that will thaw" in caplog.text


def test_a_frozen_adapter_stays_frozen_over_a_change() -> None:
    """Held by a Freezer, frozen by hand, or neither: growing, shrinking, rank 0 and back."""
    module = regression(LONE, network=mixed, optimizer=adamw)
    by_hand = list(module.network.proj.lora_A.parameters())
    ledger.hold(by_hand, "me")
    flags = recorder(
        LONE,
        lambda t, m: {n for n, p in m.network.named_parameters() if "lora_" in n and not p.requires_grad},
    )
    schedule = [
        {"step": 1, "rank_pattern": {"fc": 6, "proj": 5}},
        {"step": 3, "rank_pattern": {"fc": 0, "proj": 0}},
        {"step": 5, "rank_pattern": {"fc": 2, "proj": 2}},
    ]
    freezers = [
        Freezer(name_starts_with="h.0.fc", until_step=7),
        Freezer(name_starts_with="h.0.fc.lora_A", until_step=6),
    ]
    fit(schedule, LONE, *freezers, flags, module=module)

    held = {"h.0.fc.lora_A.default.weight", "h.0.fc.lora_B.default.weight"}
    mine = {"proj.lora_A.default.weight"}
    assert flags.seen == [held | mine] * 7 + [mine]
    assert ledger.release(list(module.network.proj.lora_A.parameters()), "me")
    assert not module.network.h[0]["fc"].base_layer.weight.requires_grad


@pytest.mark.parametrize("on_zero", ["drop", "merge", "freeze"])
def test_rank_zero_in_a_run(on_zero: Any, caplog: Any) -> None:
    """`drop` warns of its cost, `merge` and `freeze` keep the loss; what froze thaws with the next rank."""
    schedule = [{"step": 4, "rank_pattern": {"fc": 0}}, {"step": 6, "rank_pattern": {"fc": 3}}]
    flags = recorder(LONE, lambda t, m: m.network.h[0]["fc"].lora_A["default"].weight.requires_grad)
    losses = recorder(LONE, lambda t, m: m.loss(next(iter(batches()))).item(), "on_before_zero_grad")
    before = recorder(LONE, lambda t, m: m.loss(next(iter(batches()))).item())
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        seen, _, _ = fit(schedule, LONE, flags, losses, before, on_zero=on_zero)

    kept = abs(losses.seen[4] - before.seen[3]) < 1e-5
    assert kept == (on_zero != "drop")
    assert ("rank 0 drops updates of norm" in caplog.text) == (on_zero == "drop")
    assert flags.seen == [True] * 4 + [on_zero != "freeze"] * 2 + [True] * 2
    assert (4 in changes(seen)) == (on_zero != "freeze")
    if on_zero == "freeze":
        assert "LoRA rank 3 for h.0.fc, h.1.fc, frozen as it is" in caplog.text
        assert "held by LoRA rank 0" in caplog.text
        assert "training again" in caplog.text


def test_one_line_says_what_changed_and_why(caplog: Any) -> None:
    """Alike changes share it."""
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        fit(
            [
                {"step": 2, "rank_pattern": {"fc": 6, "wte": 1}},
                {"trigger_loss": 1.0e9, "rank_pattern": {"proj": 3}},
            ]
        )

    assert "step 2: LoRA rank 6 for h.0.fc, h.1.fc (was 3)" in caplog.text
    assert "step 2: LoRA rank 1 for wte (was 3), discards " in caplog.text
    assert "step 4: LoRA rank 3 for proj as before (val/loss " in caplog.text


def test_tensorboard_shows_ranks_and_sizes(tmp_path: Path) -> None:
    """As steps, not slopes, to the end; the timeline has the ranks in its rows."""
    from pytorch_lightning.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    plain = trainer(LONE, callbacks=[FreezeStateLogger()], max_epochs=2, logger=logger)
    del plain
    _, module, _ = fit(
        [{"step": 3, "rank_pattern": {"wte": 1, "fc": 5}}],
        LONE,
        FreezeStateLogger(),
        options={"logger": logger},
    )
    events = EventAccumulator(str(tmp_path))
    events.Reload()

    def curve(key: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(key)]

    assert curve("lora/rank/wte") == [(step, 3 if step < 3 else 1) for step in range(9)]
    assert curve("lora/rank/conv") == [(step, 3) for step in range(9)]
    sizes = [value for _, value in curve("lora/parameters")]
    assert sizes[-1] == sum(p.numel() for n, p in module.named_parameters() if "lora_" in n)
    assert sizes[0] == sizes[2] == sizes[-1] + 2 * 28 - 2 * 2 * 24
    ((step, lost),) = curve("lora/discarded/wte")
    assert step == 3
    assert lost > 0
    trainable = curve("freeze/trainable_parameters")
    assert trainable[-1][1] == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert "freeze/timeline" in events.Tags()["images"]


def test_the_timeline_knows_the_ranks() -> None:
    logger = FreezeStateLogger()
    fit([{"step": 3, "rank_pattern": {"wte": 1}}], LONE, logger)
    state = logger.state_dict()["ranks"]

    assert state["steps"] == [0, 3]
    assert state["ranks"][0]["wte"] == 3
    assert state["ranks"][1] == {"wte": 1}


def test_a_second_fit_goes_on() -> None:
    """The Trainer counts on, and so does the schedule: nothing is done twice."""
    module = regression(LONE, network=mixed, optimizer=adamw)
    scheduler = LoraRankScheduler(
        [
            {"trigger_loss": float("inf"), "rank_pattern": {"wte": 5}},
            {"max_wait_iters": 1, "rank_pattern": {"wte": 2}},
            {"step": 6, "rank_pattern": {"proj": 1}},
        ]
    )
    seen = recorder(LONE, lambda t, m: ranks(m), "on_before_optimizer_step")
    run = trainer(LONE, callbacks=[scheduler, seen], max_epochs=1)
    run.fit(module, batches(), batches())
    run.fit_loop.max_epochs = 2
    run.fit(module, batches(), batches())

    assert changes(seen.seen) == {0: {"wte": 5}, 1: {"wte": 2}, 6: {"proj": 1}}


def test_two_adapters_have_two_schedules() -> None:
    """Each knows its own; the one that is not active keeps its weights."""

    def network() -> Mixed:
        return apply_lora(mixed(), {"r": 2, "target_modules": ["fc"]}, adapter_name="other")

    module = regression(LONE, network=network, optimizer=adamw)
    other = LoraRankScheduler([{"step": 2, "rank_pattern": {"fc": 4}}], "other")
    fit([{"step": 3, "rank_pattern": {"fc": 6}}], LONE, other, module=module)

    assert {site.factors.rank for site in find_lora_sites(module, "other").values()} == {4}
    assert ranks(module)["h.0.fc"] == 6


def test_loss_aware_shrinking_in_a_run() -> None:
    """It has seen enough by then; nothing listens when the run is over."""
    _, module, _ = fit([{"step": 5, "rank_pattern": {"fc": 1, "wte": 1, "conv": 1}}], shrink="kfac")

    assert ranks(module)["wte"] == 1
    assert not any(m._forward_hooks for m in module.modules())


def test_new_components_learn() -> None:
    """After growth every component moves, in every kind of layer."""
    _, module, _ = fit([{"step": 4, "rank_pattern": {".*": 6}}])

    for site in find_lora_sites(module).values():
        A, B = site.factors.matrices
        assert A[3:].any(dim=1).all(), site.title
        assert B[:, 3:].any(dim=0).all(), site.title


@pytest.mark.parametrize(
    ("optimizer_state", "expected"),
    [("keep", (True, True)), ("reset", (True, False)), ("free", (False, False))],
)
def test_the_optimizer_state_of_a_frozen_rank(optimizer_state: Any, expected: tuple[bool, bool]) -> None:
    """Of factors that `on_zero: freeze` holds: whether the optimizer knows them, and has their state."""

    def known(run: Any, module: Any) -> tuple[bool, bool]:
        [optimizer] = run.optimizers
        factor = next(s for s in find_lora_sites(module).values() if s.title == "h.0.fc").factors.parameters[
            1
        ]
        in_group = any(each is factor for group in optimizer.param_groups for each in group["params"])
        return in_group, bool(optimizer.state.get(factor))

    seen = recorder(LONE, known)
    schedule = [{"step": 2, "rank_pattern": {"h.0.fc": 0}}]
    fit(schedule, LONE, seen, on_zero="freeze", optimizer_state=optimizer_state)
    assert seen.seen == [(True, True)] * 2 + [expected] * 6
