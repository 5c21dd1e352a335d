"""What types say: the Trainers of both namespaces are what we rely on, and `Any` is rare and has a reason."""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "lighter_freezers").rglob("*.py")
}
MOST_MENTIONS = 140
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


def _without_reason(source: str) -> list[int]:
    """Lines of code that say Any, without a comment on them or right above."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    said = {
        node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name) and node.id == "Any"
    }
    return sorted(line for line in said if not {line, line - 1} & commented)


@pytest.mark.parametrize("path", SOURCES)
def test_any_has_a_reason(path: str) -> None:
    """A comment on the line, or right above it."""
    assert _without_reason(SOURCES[path]) == []


def test_the_check_sees_any_without_a_reason() -> None:
    """In a signature, and not in prose."""
    source = "# why\nA = Any\nB = Any  # why\ntext = 'Any'\n\n\ndef f(x: dict[str, Any]) -> None: ...\n"

    assert _without_reason(source) == [7]


@pytest.mark.wide
def test_both_trainers_are_what_we_rely_on(tmp_path: Path) -> None:
    """Every part of `TrainerLike` is found in them by mypy."""
    (tmp_path / "trainers.py").write_text(TRAINERS)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    run = subprocess.run(
        [*command, "--follow-imports", "silent", "trainers.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )

    assert run.stdout.startswith("Success"), run.stdout + run.stderr
