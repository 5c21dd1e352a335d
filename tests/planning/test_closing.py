"""The last lines of a run: what they say, and how the share of saved backward work is counted."""

import json
from pathlib import Path

import pytest

from lighter_freezers.planning.closing import backward_work, closing_lines
from lighter_freezers.planning.phase_meter import FILE, PhaseRecord

HALF = PhaseRecord(0, 0, "half", 50, flops=150, forward_flops=100)
WHOLE = PhaseRecord(10, 0, "whole", 100, flops=290, forward_flops=100)


@pytest.mark.parametrize(
    ("records", "saved", "ratio"),
    [
        ([HALF, WHOLE], 1 - (10 * 50 + 20 * 190) / (30 * 190), (10 * 50 + 20 * 190) / (30 * 100)),
        ([HALF], None, 0.5),  # what all of it would cost was not measured
        ([WHOLE], 0.0, 1.9),
        ([], None, None),
    ],
)
def test_the_work_of_the_backward_passes(
    records: list[PhaseRecord], saved: float | None, ratio: float | None
) -> None:
    assert backward_work(records, 30, 100) == pytest.approx((saved, ratio))


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
    (tmp_path / FILE).write_text(json.dumps({"phases": [HALF.as_dict()], "num_steps": 30}))
    others = "\n".join(closing_lines(tmp_path, [], [], [], 100))
    assert "backward  0.50 times the forward work (about 2 if all trains)" in others
    shown = lines.replace(str(tmp_path), "outputs/run/version_0").splitlines()
    assert len(max(shown, key=len)) <= 57
    assert closing_lines(tmp_path / "empty", [], [], [], 0)[0] == "  next"
