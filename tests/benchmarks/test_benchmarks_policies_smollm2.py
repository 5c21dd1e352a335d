"""Full training, LoRA and LISA on SmolLM2: the study and its table, on a tiny Llama instead of SmolLM2."""

from pathlib import Path

import pytest

from benchmarks import policy_smollm2 as study
from tests.benchmarks.test_benchmarks_smollm2 import tiny

pytestmark = pytest.mark.wide  # a benchmark from its command to its page


def test_all_ways_learn_and_the_page_has_their_costs(tmp_path: Path) -> None:
    """Each has a loss and the bytes of its optimizer; LoRA has the fewest, full training the most."""
    page = tmp_path / "page.md"
    page.write_text(f"<!-- results: {study.STUDY} -->\n")
    overrides = [each for each in tiny(tmp_path) if "max_steps" not in each and "val_check" not in each]
    result = study.main(["--steps", "4", "--rates", "1", "--into", str(page), *overrides])
    full, lora, lisa = (
        next(iter(result["rows"][title]["by_rate"].values()))
        for title in ("full training", "LoRA, rank 8", "Lisa, 2 blocks")
    )
    assert lora["optimizer"] < full["optimizer"]
    assert lisa["gradients"] <= full["gradients"]
    assert f"| full training | 0.0001 | {full['loss']:.3f} |" in page.read_text()
