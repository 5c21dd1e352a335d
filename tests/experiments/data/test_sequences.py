"""Which of many sequences are kept, and where windows begin."""

import pytest

from lighter_freezers.experiments.data.sequences import evenly_spread, window_starts


@pytest.mark.parametrize(
    ("total", "limit", "kept"),
    [
        (5, None, [0, 1, 2, 3, 4]),
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 4, [0, 2, 5, 7]),
        (3, 9, [0, 1, 2]),
        (0, 4, []),
    ],
)
def test_what_is_kept_is_spread_evenly(total: int, limit: int | None, kept: list[int]) -> None:
    """Over all there is; a limit beyond the end changes nothing."""
    assert evenly_spread(total, limit).tolist() == kept


def test_windows_lie_side_by_side() -> None:
    """Each has a token after it, and what is left over is left out."""
    assert window_starts(13, 4, None).tolist() == [0, 4, 8]
    assert window_starts(12, 4, None).tolist() == [0, 4]
    assert window_starts(41, 4, 5).tolist() == [0, 8, 16, 24, 32]
