"""What types say: the Trainers of both namespaces are what we rely on, and `Any` is rare."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "lighter_freezers").rglob("*.py")
}
MOST_MENTIONS = 200
TRAINERS = """
import lightning.pytorch
import pytorch_lightning

from lighter_freezers.engine.trainer_like import TrainerLike


def both(one: pytorch_lightning.Trainer, other: lightning.pytorch.Trainer) -> list[TrainerLike]:
    return [one, other]
"""


def test_the_word_any_is_rare() -> None:
    """Counted as words, in prose and in imports too."""
    assert sum(len(re.findall(r"\bAny\b", source)) for source in SOURCES.values()) <= MOST_MENTIONS


@pytest.mark.wide
def test_both_trainers_are_what_we_rely_on(tmp_path: Path) -> None:
    """Every part of `TrainerLike` is found in them by mypy."""
    (tmp_path / "trainers.py").write_text(TRAINERS)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    run = subprocess.run(
        [*command, "--follow-imports", "silent", "trainers.py"], cwd=tmp_path, capture_output=True, text=True
    )

    assert run.stdout.startswith("Success"), run.stdout + run.stderr
