"""What policies need, counted, and the study of how well they learn: its parts with few steps."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import policy_costs, policy_study
from benchmarks.policy_costs import WAYS

SMALL = Namespace(layers=4, width=32, batch=2, tokens=8, steps=16)
TINY = Namespace(
    layers=4, batch=4, val_sequences=4, steps=2, pretraining_steps=1, seeds=2, rates=1, checkpoint=None
)


def named(*names: str) -> list[policy_costs.Way]:
    return [next(way for way in WAYS if way.name == name) for name in names]


def test_a_cycled_block_needs_the_state_of_one_block() -> None:
    """Twice its parameters and a step count per tensor; the state that is kept is that of all blocks."""
    ways = named("full training", "LoRA of 1 block's size", "BlockCycling", "BlockCycling, state kept")
    report = policy_costs.run(SMALL, ways)
    norms, matrices = 2 * 32, 12 * 32**2
    block = 2 * 4 * (norms + matrices) + 4 * 6  # two moments in fp32, and six step counts
    assert report.value("BlockCycling: optimizer state") * 1024 == block
    assert report.value("BlockCycling, state kept: optimizer state") * 1024 == 4 * block
    assert report.value("BlockCycling: gradients") * 1024 == 4 * (norms + matrices)
    lora = report.value("LoRA of 1 block's size: gradients") * 1024
    assert lora == pytest.approx(4 * matrices, rel=0.01)
    flops = [report.value(f"{way.name}: FLOPs of a step") for way in ways]
    assert flops[2] == flops[3] < flops[0]


@pytest.mark.wide
def test_the_study_compares_at_equal_steps_and_equal_flops() -> None:
    ways = named("full training", "Lisa, 2 blocks")
    rows = policy_study.study(TINY, ways)
    assert list(rows) == [way.name for way in ways]
    full, lisa = rows.values()
    assert full["equal_flops"] == full["equal_steps"]
    assert [run["flops"] for run in lisa["equal_steps"]] == [lisa["equal_steps"][0]["flops"]] * 2
    assert lisa["num_steps"] == round(2 * full["equal_steps"][0]["flops"] / lisa["equal_steps"][0]["flops"])
    assert all(run["loss"] > 0 for row in rows.values() for run in row["equal_steps"])


def row(*losses: float) -> dict[str, Any]:
    runs = [{"loss": loss, "flops": 2e9, "state": 1e6} for loss in losses]
    return {"rate": 0.003, "equal_steps": runs, "equal_flops": runs, "num_steps": 7}


def test_the_table_marks_what_is_within_noise(tmp_path: Path) -> None:
    rows = {policy_study.FULL: row(2.0, 2.1), "near": row(2.1, 2.2), "far": row(3.0, 3.0)}
    result = {"rows": rows, "command": "python", "method": "method", "versions": {}}
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results: policies -->\nafter")
    text = policy_study.fill(page.read_text(), result)
    assert "| near | 0.003 | ~ 2.150 (0.071) | ~ 2.150 (0.071) | 2 | 7 | 1,000 |" in text
    assert "| far | 0.003 | 3.000 (0.000) | 3.000 (0.000) |" in text
    assert policy_study.fill(text, result) == text
    with pytest.raises(ValueError, match="no <!-- results: policies -->"):
        policy_study.fill("nothing", result)
