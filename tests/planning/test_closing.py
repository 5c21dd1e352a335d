"""The last lines of a run: what they say, and how the share of saved backward work is counted."""

import json
from pathlib import Path

import pytest

from lighter_freezers.planning.closing import closing_lines, saved_backward
from lighter_freezers.planning.phase_meter import FILE, PhaseRecord

HALF = PhaseRecord(0, 0, "half", 50, flops=150, forward_flops=100)
WHOLE = PhaseRecord(10, 0, "whole", 100, flops=290, forward_flops=100)


@pytest.mark.parametrize(
    ("records", "num_steps", "share"),
    [
        ([HALF, WHOLE], 30, 1 - (10 * 50 + 20 * 190) / (30 * 190)),  # measured in the second phase
        ([HALF], 30, 1 - 50 / 200),  # twice the forward pass
        ([WHOLE], 30, 0.0),
        ([], 30, None),
    ],
)
def test_the_share_of_the_backward_work(
    records: list[PhaseRecord], num_steps: int, share: float | None
) -> None:
    assert saved_backward(records, num_steps, 100) == pytest.approx(share)


def test_the_lines_name_what_is_in_the_folder(tmp_path: Path) -> None:
    """The commands that work there, the picture, and the first of many changes."""
    changes = [(step, f"change {step}") for step in range(12)]
    lines = "\n".join(closing_lines(tmp_path, [("loss", "2 -> 1")], changes, [], 100))

    assert "change 7\n" in lines
    assert "and 4 more changes, the last at step 11" in lines
    assert "backward" not in lines
    assert [line.split()[-2] for line in lines.splitlines() if "lighter-freezers" in line] == ["compare"]

    report = {"phases": [HALF.as_dict(), WHOLE.as_dict()], "num_steps": 30}
    (tmp_path / "config.yaml").touch()
    (tmp_path / FILE).write_text(json.dumps(report))
    (tmp_path / "gradients.group_norms.csv").touch()
    (tmp_path / "freeze_timeline.png").touch()
    lines = "\n".join(closing_lines(tmp_path, [("loss", "2 -> 1")], changes[:1], [], 100))

    assert "saved    25% of the backward work of full training" in lines
    assert f"picture  {tmp_path / 'freeze_timeline.png'}" in lines
    shown = [line.split()[-2] for line in lines.splitlines() if "lighter-freezers" in line]
    assert shown == ["report", "plots", "compare"]
    shown = lines.replace(str(tmp_path), "outputs/run/version_0").splitlines()
    assert len(max(shown, key=len)) <= 57
    assert closing_lines(tmp_path / "empty", [], [], [], 0)[0] == "  next"
