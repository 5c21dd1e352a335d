"""Docstrings, comments, messages and documents name what acts, and use the words of the field."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALWAYS_WRONG = re.compile(
    r"\b(nobody|somebody|whoever|for ever|as it were|hears? (the|of)|lets? (it |them )?go|"
    r"in the way of|says? so|rules and acts|at work)\b",
    re.IGNORECASE,
)
FILES = [
    *sorted((ROOT / "lighter_freezers").rglob("*.py")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("*.md")),
]


def findings(text: str) -> list[str]:
    """The words that are always wrong in a text, each with its line."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{number}: {match[0]}" for number, line in lines for match in ALWAYS_WRONG.finditer(line)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_prose_is_plain(file: Path) -> None:
    """Say who does what: "the optimizer drops the state", "no Freezer selects it"."""
    assert findings(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "word", ["Nobody", "somebody", "hears the", "lets go of", "let go", "whoever", "says so"]
)
def test_the_check_finds_each_word(word: str) -> None:
    """A check that finds nothing anywhere would always pass."""
    assert findings(f"first\nand {word} here") != []
