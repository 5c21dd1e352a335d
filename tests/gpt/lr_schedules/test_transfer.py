"""The rates of trunk and head by hand, as numbers and in an optimizer's groups."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers.gpt.lr_schedules import TransferLearningScheduler

GUIDE: dict[str, Any] = {
    "base_lr": 5e-5,
    "head_lr_multiplier": 10.0,
    "feature_extraction_iters": 2000,
    "unfreeze_lr_drop": 0.1,
}


def test_the_example_of_the_guide() -> None:
    """While the trunk is frozen."""
    scheduler = TransferLearningScheduler(**GUIDE)

    for iter_num in (500, 1000, 1999, 5000):
        assert scheduler.get_lr(iter_num, is_frozen=True) == {"transformer": 0.0, "head": 5e-4}
    assert TransferLearningScheduler().get_lr(1999) == {"transformer": 0.0, "head": 5e-4}


def test_the_head_does_not_fall_at_the_thaw() -> None:
    """And the trunk begins at a tenth of the base."""
    scheduler = TransferLearningScheduler(**GUIDE)

    assert scheduler.get_lr(1999) == {"transformer": 0.0, "head": 5e-4}
    assert scheduler.get_lr(2000) == {"transformer": pytest.approx(5e-6), "head": 5e-4}
    assert scheduler.get_lr(2000) == scheduler.get_lr(2000, is_frozen=False)
    assert scheduler.get_lr(10**6) == scheduler.get_lr(2000)  # no max_iters, no decay


def test_the_warm_up_is_linear() -> None:
    """(i + 1) / (warmup_iters + 1) of the full rate, for a trunk that trains too."""
    scheduler = TransferLearningScheduler(**GUIDE, warmup_iters=499)

    for iter_num in (0, 1, 250, 498):
        rates = scheduler.get_lr(iter_num, is_frozen=False)
        assert rates["head"] == pytest.approx(5e-4 * (iter_num + 1) / 500, rel=1e-12)
        assert rates["transformer"] == pytest.approx(5e-6 * (iter_num + 1) / 500, rel=1e-12)


def test_the_decay_is_half_a_cosine_that_arrives() -> None:
    """From the thaw to `max_iters`, both parts to a fifth; it stays there."""
    scheduler = TransferLearningScheduler(**GUIDE, max_iters=10_000, min_lr_ratio=0.2)
    for iter_num, left in ((2000, 1.0), (6000, 0.6), (10_000, 0.2), (20_000, 0.2)):
        rates = scheduler.get_lr(iter_num)
        assert rates == {"transformer": pytest.approx(5e-6 * left), "head": pytest.approx(5e-4 * left)}
    third = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2

    assert scheduler.get_lr(4000)["head"] == pytest.approx(5e-4 * third)


def test_without_feature_extraction_the_trunk_trains_from_the_start() -> None:
    """The decay waits for the warm-up."""
    scheduler = TransferLearningScheduler(feature_extraction_iters=0, warmup_iters=99, max_iters=199)

    assert scheduler.get_lr(0)["transformer"] == pytest.approx(5e-8)
    assert scheduler.get_lr(99)["transformer"] == pytest.approx(5e-6)
    assert scheduler.get_lr(149)["head"] == pytest.approx(5e-4 * 0.55)


def parameters(number: int = 2) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2)) for _ in range(number)]


def two_groups(**options: Any) -> torch.optim.SGD:
    trunk, head = parameters()
    groups = [{"params": [trunk], "name": "trunk"}, {"params": [head], "name": "head"}]
    return torch.optim.SGD(groups, lr=123.0, **options)


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@pytest.mark.filterwarnings("ignore:The trunk trains at a learning rate of 0")
def test_it_drives_groups_called_trunk_and_head() -> None:
    """With the same numbers as without an optimizer, whatever rates the groups had."""
    optimizer = two_groups()
    arguments: dict[str, Any] = {"warmup_iters": 2, "feature_extraction_iters": 4, "max_iters": 8}
    scheduler = TransferLearningScheduler(optimizer, **arguments)
    alone = TransferLearningScheduler(**arguments)
    seen = []
    for _ in range(10):
        seen.append(rates_of(optimizer))
        assert scheduler.get_last_lr() == seen[-1]
        optimizer.step()
        scheduler.step()

    assert seen == [[alone.get_lr(i)["transformer"], alone.get_lr(i)["head"]] for i in range(10)]
    assert [row[0] for row in seen[:5]] == [0.0] * 4 + [pytest.approx(5e-6)]
    assert seen[4][1] == 5e-4
    assert seen[9] == [pytest.approx(5e-7), pytest.approx(5e-5)]


def test_it_is_a_torch_scheduler() -> None:
    """Lightning and `SequentialLR` ask for the class."""
    assert isinstance(TransferLearningScheduler(two_groups()), torch.optim.lr_scheduler.LRScheduler)


def test_it_saves_its_progress_only() -> None:
    """Plain values; the arguments are those that the resumed run was given."""
    optimizer = two_groups()
    scheduler = TransferLearningScheduler(optimizer, feature_extraction_iters=0, warmup_iters=1)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    resumed = TransferLearningScheduler(two_groups(), feature_extraction_iters=0, warmup_iters=10)
    resumed.load_state_dict(state)

    assert state["last_epoch"] == 5
    assert all(isinstance(value, (int, list)) for value in state.values())
    assert resumed.get_lr() == pytest.approx([5e-6 * 6 / 11, 5e-4 * 6 / 11])


def test_groups_of_other_names_are_refused() -> None:
    """The message says what there is, and how to get what is needed."""
    trunk, head = parameters()
    groups = [{"params": [trunk], "name": "backbone"}, {"params": [head]}]
    with pytest.raises(ValueError, match="backbone, .group 1 without a name.*trunk_and_head_groups"):
        TransferLearningScheduler(torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(ValueError, match="groups named 'trunk' and 'head'. It has head"):
        TransferLearningScheduler(torch.optim.SGD([{"params": [head], "name": "head"}], lr=0.1))


def test_a_trunk_that_trains_at_rate_zero_is_noticed() -> None:
    """It costs a backward pass for nothing; said once, after the first step."""
    optimizer = two_groups()
    scheduler = TransferLearningScheduler(optimizer, feature_extraction_iters=3)
    optimizer.step()
    with pytest.warns(UserWarning, match="The trunk trains at a learning rate of 0 until iteration 3"):
        scheduler.step()
    for _ in range(5):
        optimizer.step()
        scheduler.step()


def test_a_trunk_that_is_never_thawed_is_noticed() -> None:
    """One step after it should have been, when a Freezer with the same number has thawed it."""
    optimizer = two_groups()
    optimizer.param_groups[0]["params"][0].requires_grad_(False)
    scheduler = TransferLearningScheduler(optimizer, feature_extraction_iters=3)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    optimizer.step()
    with pytest.warns(UserWarning, match="feature_extraction_iters=3 are over, but the whole trunk is still"):
        scheduler.step()
    optimizer.step()
    scheduler.step()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base_lr": "5e-5"}, TypeError, "base_lr must be a number.*write 5.0e-5"),
        ({"head_lr_multiplier": 0}, ValueError, "head_lr_multiplier must be above 0"),
        ({"warmup_iters": 1.5}, TypeError, "warmup_iters must be a whole number"),
        ({"feature_extraction_iters": None}, TypeError, "feature_extraction_iters must be a whole number"),
        ({"max_iters": 2000}, ValueError, "begin to decay at iteration 2000, but max_iters=2000"),
        ({"min_lr_ratio": 1.1}, ValueError, "min_lr_ratio must be between 0 and 1"),
        ({"optimizer": 5e-5}, TypeError, "first argument of TransferLearningScheduler is a torch optimizer"),
    ],
)
def test_a_bad_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """Before any training."""
    with pytest.raises(error, match=message):
        TransferLearningScheduler(**change)


def test_without_an_optimizer_it_cannot_step() -> None:
    """It can only be asked."""
    with pytest.raises(RuntimeError, match="drives no optimizer. Ask it with get_lr"):
        TransferLearningScheduler().step()
