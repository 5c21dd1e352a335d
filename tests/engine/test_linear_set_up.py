"""Set-up grows in proportion to what there is: tensors that no optimizer has, and holds that overlap."""

import time
from collections.abc import Callable

import torch
from torch import nn

from lighter_freezers.engine.effects.optimizer_groups import add_missing
from lighter_freezers.engine.ledger import Hold


def _seconds(work: Callable[[int], object], size: int) -> float:
    def once() -> float:
        start = time.process_time()
        work(size)
        return time.process_time() - start

    return min(once() for _ in range(3))


def _growth(work: Callable[[int], object], size: int) -> float:
    """How many times longer four times as much takes: 4 if linear, 16 if quadratic."""
    work(size)
    return _seconds(work, 4 * size) / _seconds(work, size)


def _add(size: int) -> None:
    names = [f"h.{index}.weight" for index in range(2 * size)]
    named = {name: nn.Parameter(torch.zeros(1)) for name in names}
    optimizer = torch.optim.SGD([named[name] for name in names[size:]], lr=0.1)
    ids = {id(parameter): name for name, parameter in named.items()}
    add_missing({name: named[name] for name in names[:size]}, ids, [optimizer], [])


def _hold(size: int) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(20)]
    holds = [Hold(parameters, "test") for _ in range(size)]
    for each in holds:
        each.take()
    for each in holds:
        each.abandon()


def test_adding_to_an_optimizer_is_linear():
    assert _growth(_add, 500) < 9


def test_overlapping_holds_are_linear():
    assert _growth(_hold, 250) < 9


def test_a_dead_hold_leaves_nothing_behind():
    from lighter_freezers.engine import ledger, ledger_records

    parameter = nn.Parameter(torch.zeros(1))
    for _ in range(3):
        Hold([parameter], "gone").take()
    assert ledger.holders(parameter) == ()
    assert not ledger_records.record_of(parameter).holds
