"""One operation after another: when each has its turn, worked out by hand."""

import math
from typing import Any

import pytest

from lighter_freezers.layers.operations import OperationQueue, Record, read_operations

INF = math.inf


def entry(loss: float | None = None, wait: int | None = None, reevaluate: bool = False) -> dict[str, Any]:
    given = {"name": "freeze_layer", "value": "wte", "trigger_loss": loss, "max_wait_iters": wait}
    return {**given, "reevaluate": reevaluate}


def turns(entries: list[dict[str, Any]], losses: dict[int, float], num_steps: int = 20) -> list[int]:
    """The step of each operation's turn; a loss is known from its step on."""
    queue = OperationQueue(read_operations(entries, "val/loss"))
    found = []
    for step in range(num_steps):
        if step in losses:
            queue.observe(losses[step])
        while (reason := queue.reason(step)) is not None:
            queue.close(Record("freeze_layer wte", step, reason, "done", ""))
            found.append(step)
    return found


@pytest.mark.parametrize(
    ("entries", "losses", "steps"),
    [
        ([entry(INF, 0)], {}, [0]),
        ([entry(INF)], {}, [0]),
        ([entry(None, 0)], {}, [0]),
        ([entry(INF, 500)], {}, [0]),
        ([entry(2.5, 0)], {3: 9.0}, [0]),
        ([entry(2.5)], {3: 2.5, 6: 2.4}, [6]),
        ([entry(2.5)], {3: 3.0}, []),
        ([entry(2.5)], {3: math.nan, 4: 2.0}, [4]),
        ([entry(2.5, 7)], {3: 3.0}, [7]),
        ([entry(2.5, 7)], {5: 2.0}, [5]),
        ([entry(None, 7)], {5: 0.0}, [7]),
        ([entry(0, 7)], {5: 0.0}, [7]),
        ([entry(0)], {5: 0.0}, []),
        ([entry(None, 4), entry(None, 4), entry(None, 4)], {}, [4, 8, 12]),
        ([entry(3.0), entry(2.0), entry(1.0)], {2: 1.5, 9: 0.5}, [2, 2, 9]),
        ([entry(1.0), entry(3.0)], {2: 1.5, 9: 0.5}, [9, 9]),
        ([entry(3.0, 4), entry(3.0, 4)], {6: 9.0}, [4, 8]),
        ([entry(3.0), entry(None, 5), entry(3.0)], {2: 1.0}, [2, 7, 7]),
        ([entry(3.0, None, True), entry(3.0), entry(3.0)], {2: 1.0, 5: 2.0}, [2, 5, 5]),
        ([entry(3.0, None, True), entry(3.0, 2)], {2: 1.0, 9: 2.0}, [2, 4]),
        ([entry(3.0, None, True), entry(INF)], {2: 1.0}, [2, 2]),
        ([entry(-1.0)], {2: 1.0, 4: -1.5}, [4]),
    ],
)
def test_turns(entries: list[dict[str, Any]], losses: dict[int, float], steps: list[int]) -> None:
    """Strictly below; waits from the one before; the same loss for all, unless it is measured again."""
    assert turns(entries, losses) == steps


@pytest.mark.parametrize(
    ("given", "value", "num_steps", "reason"),
    [
        (entry(INF, 0), None, 0, "at once"),
        (entry(2.5), 2.41234, 3, "val/loss 2.412 < 2.5"),
        (entry(2.5, 100), 2.6, 100, "waited 100 steps"),
        (entry(2.5, 100), 2.4, 100, "val/loss 2.4 < 2.5"),
    ],
)
def test_reasons_in_words(given: dict[str, Any], value: float | None, num_steps: int, reason: str) -> None:
    """As they stand in the log."""
    (operation,) = read_operations([given], "val/loss")

    assert operation.trigger.reason(value, num_steps) == reason


def test_it_knows_until_when_the_loss_matters() -> None:
    """A loss that no longer matters need not be read."""
    queue = OperationQueue(read_operations([entry(2.0), entry(None, 3), entry(INF)], "val/loss"))
    assert queue.looks_at_loss
    queue.close(Record("freeze_layer wte", 5, "", "done", ""))

    assert not queue.looks_at_loss
    assert queue.deadline() == 8
    assert len(queue.pending) == 2


def test_a_queue_goes_on_where_it_was_saved() -> None:
    """Nothing is replayed; what is still to come may have changed."""
    first = OperationQueue(read_operations([entry(3.0), entry(2.0)], "val/loss"))
    first.observe(2.5)
    first.close(Record("freeze_layer wte", 4, "because", "done", "froze"))
    second = OperationQueue(read_operations([entry(9.0), entry(None, 6), entry(INF)], "val/loss"))
    second.remember(first.state())

    assert [second.reason(step) for step in (9, 10)] == [None, "waited 6 steps"]
    assert second.records == first.records
    first_state, second_state = first.state(), second.state()
    assert [*first_state.pop("done").values()] == [*second_state.pop("done").values()] == ["freeze_layer wte"]
    assert second_state == first_state


def named(name: str, loss: float) -> dict[str, Any]:
    return {**entry(loss), "value": name}


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (["wte", "wpe", "head"], ["head"]),
        (["wpe", "wte", "head"], ["head"]),  # in another order
        (["new", "wte", "wpe", "head"], ["new", "head"]),  # one more before them
        (["wte", "head"], ["head"]),  # one is gone
        (["wte", "new", "head"], ["new", "head"]),  # one became another
        (["wte", "wte", "wpe"], ["wte"]),  # twice now, done once
        (["new"], ["new"]),
    ],
)
def test_what_is_done_is_not_done_again_wherever_it_stands(now: list[str], left: list[str]) -> None:
    """The list may change before a resume; also the loss that something done had waited for."""
    first = OperationQueue(read_operations([named(name, 3.0) for name in ("wte", "wpe", "head")], "val/loss"))
    for name in ("wte", "wpe"):
        first.close(Record(f"freeze_layer {name}", 4, "", "done", ""))
    second = OperationQueue(read_operations([named(name, 2.0) for name in now], "val/loss"))
    second.remember(first.state())

    assert [operation.value for operation in second.pending] == left
    assert second.records == first.records
