"""A transition costs what flips, whatever else there is in the model: counted in calls, not in time."""

import gc
import logging
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from torch import nn

from lighter_freezers import Freezer, LayerOperations
from lighter_freezers.engine.engine import Engine
from lighter_freezers.engine.triggers import Moment
from tests.lab import NAMESPACES, WIDTH, batches, recorder, regression, trainer

WALKS = {nn.Module.named_modules, nn.Module._named_members}
LONE = "pytorch_lightning"


class Wide(nn.Module):
    """Two blocks that freeze and thaw, and any number of layers behind them that only train."""

    def __init__(self, num_others: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)) for _ in range(2)
        )
        self.others = nn.Sequential(
            *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)) for _ in range(num_others))
        )
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(autouse=True)
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines are made and go nowhere: what a handler does depends on the length of each."""
    logger = logging.getLogger("lighter_freezers")
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logger, "propagate", False)


def calls_of(call: Callable[[], object]) -> tuple[int, set[str]]:
    """How many functions a call makes, of Python and of C, and which walks over modules are among them."""
    number, walks = 0, set()
    codes = {walk.__code__: walk.__name__ for walk in WALKS}

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")
        if event == "call" and frame.f_code in codes:
            walks.add(codes[frame.f_code])

    before = sys.getprofile()
    gc.disable()  # other tests may have left callbacks there, which would count
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
        gc.enable()
    return number, walks


def transitions(namespace: str, num_others: int, callback: Any) -> list[tuple[int, set[str]]]:
    """The calls of each of some moments, in the middle of a run."""
    counted = []

    def advance(runner: Any, module: Any) -> None:
        engine = Engine.of(runner)
        if runner.global_step == 2:
            for step in range(4, 12):
                counted.append(calls_of(lambda at=step: engine.advance(Moment(at, 0))))  # type: ignore[misc]

    def build() -> nn.Module:
        return Wide(num_others)

    seen = recorder(namespace, advance, "on_train_batch_end")
    runner = trainer(namespace, callbacks=[callback, seen], max_steps=2)
    runner.fit(regression(namespace, build), batches(), batches())
    return counted


def freezer() -> Freezer:
    windows = [[step, step + 1] for step in range(5, 12, 2)]
    return Freezer(name_starts_with="blocks.1.", windows=windows, unfreeze_lr_factor=0.5)


def operations() -> LayerOperations:
    kinds = ("freeze_layer", "unfreeze_layer") * 4
    wait = {"trigger_loss": 0.0, "max_wait_iters": 1}
    return LayerOperations(operations=[{"name": kind, "value": "blocks.1", **wait} for kind in kinds])


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_transition_of_rules_walks_no_model(namespace: str) -> None:
    """Ten times the layers, and the same calls from the second transition on."""
    few, many = (transitions(namespace, number, freezer()) for number in (3, 30))
    assert [number for number, _ in few[2:]] == [number for number, _ in many[2:]]
    assert not set().union(*(walks for _, walks in many))


def test_a_transition_of_operations_walks_no_model() -> None:
    """What one action freezes and thaws costs what it costs through rules."""
    few, many = (transitions(LONE, number, operations()) for number in (3, 30))
    assert len([number for number, _ in many if number > 100]) >= 4
    assert [number for number, _ in few[2:]] == [number for number, _ in many[2:]]
    assert not set().union(*(walks for _, walks in many[2:]))
