"""The benchmarks of what freezing saves: they run, and what they count meets its targets."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import compile as compile_benchmark, freeze_gain, freeze_memory, measure

SMALL_GAIN = ["--layers", "3", "--width", "32", "--time", "16", "--prefix", "1", "2", "--rounds", "1"]
SMALL_MEMORY = ["--layers", "10", "--width", "64", "--tensors", "20", "--rounds", "1"]
SMALL: list[tuple[ModuleType, str, list[str]]] = [
    (freeze_gain, "B4", SMALL_GAIN),
    (freeze_memory, "B6", SMALL_MEMORY),
    (compile_benchmark, "B7", ["--layers", "4"]),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at all inputs
@pytest.mark.parametrize(("module", "number", "arguments"), SMALL, ids=[number for _, number, _ in SMALL])
def test_counts_meet_their_targets(module: Any, number: str, arguments: list[str], tmp_path: Path) -> None:
    """Operations, bytes and graphs are the same on every machine."""
    report = measure.main(module.run, module.parser(), [*arguments, "--json", str(tmp_path / "result.json")])
    exact = [row for row in report.rows if row.is_exact]

    assert report.benchmark == number
    assert exact
    assert [row for row in exact if not row.is_met] == []


def test_the_gain_is_lost_without_a_boundary() -> None:
    """The benchmark sees it: flags alone are above the limit wherever a gradient flows through the prefix."""
    report = freeze_gain.run(freeze_gain.parser().parse_args([*SMALL_GAIN[:-1], "0"]))
    ratios = {row.what: row.value for row in report.rows if "flags alone" in row.what}

    assert all((ratio > 1.02) == ("plain" not in what) for what, ratio in ratios.items())
