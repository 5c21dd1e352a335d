"""The schedule of a gradual unfreezing, for every number of layers and epochs from 1 to 40."""

import itertools

import pytest

from lighter_freezers.layers.thaw_pace import num_unfrozen_layers

SIZES = list(itertools.product(range(1, 41), repeat=2))


def schedule(num_layers: int, total_epochs: int) -> list[int]:
    """The number of layers in each epoch."""
    return [num_unfrozen_layers(epoch, num_layers, total_epochs) for epoch in range(total_epochs)]


def test_it_begins_with_the_head_and_ends_with_all() -> None:
    """None in the first epoch of several, all in the last, never fewer than before."""
    for num_layers, total_epochs in SIZES:
        numbers = schedule(num_layers, total_epochs)
        assert numbers[-1] == num_layers
        assert total_epochs == 1 or numbers[0] == 0
        assert numbers == sorted(numbers)


def test_half_of_the_layers_halfway() -> None:
    """In epoch 5 of 10, in the middle of an odd number of epochs."""
    for num_layers, total_epochs in SIZES:
        if total_epochs > 2:
            assert schedule(num_layers, total_epochs)[(total_epochs + 1) // 2 - 1] == num_layers // 2


def test_it_grows_evenly() -> None:
    """No epoch thaws many more layers than another: at most twice the mean, rounded up."""
    for num_layers, total_epochs in SIZES:
        numbers = schedule(num_layers, total_epochs)
        steps = [after - before for before, after in itertools.pairwise(numbers)]
        if total_epochs > 3:
            assert max(steps) <= -(-2 * num_layers // (total_epochs - 2))


@pytest.mark.parametrize(
    ("num_layers", "total_epochs", "expected"),
    [
        (12, 10, [0, 1, 3, 4, 6, 7, 8, 9, 10, 12]),
        (4, 10, [0, 0, 1, 1, 2, 2, 2, 3, 3, 4]),
        (12, 5, [0, 3, 6, 9, 12]),
        (6, 2, [0, 6]),
        (6, 1, [6]),
        (0, 3, [0, 0, 0]),
    ],
)
def test_by_hand(num_layers: int, total_epochs: int, expected: list[int]) -> None:
    """The table of the docstring, and the shortest schedules."""
    assert schedule(num_layers, total_epochs) == expected


def test_it_stays_at_all_after_the_last_epoch() -> None:
    """A run that is longer than its schedule goes on with all layers."""
    assert num_unfrozen_layers(17, 12, 10) == 12


@pytest.mark.parametrize("arguments", [(-1, 4, 4), (0, -1, 4), (0, 4, 0)])
def test_what_cannot_be_counted_is_an_error(arguments: tuple[int, int, int]) -> None:
    """Epochs and layers are counted from 0, and there is at least one epoch."""
    with pytest.raises(ValueError, match="count from 0 and a schedule has at least 1 epoch"):
        num_unfrozen_layers(*arguments)
