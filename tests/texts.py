"""Small texts on disk that the tests share."""

import random
from pathlib import Path
from typing import Any

WORDS = [
    "hold",
    "release",
    "thaw",
    "layer",
    "head",
    "0",
    "1",
    "é",
    "漢",
    "😀",
    "<eos>",
    "(",
    ")",
    ":",
    "\n",
    "\t",
]


def write_texts(folder: Path, num_files: int = 12, num_words: int = 300) -> Path:
    """The same .txt files every time: words in a random order, not all of them ASCII."""
    words = random.Random(0)
    for index in range(num_files):
        file = folder / f"part{index % 3}" / f"text{index}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(" ".join(words.choices(WORDS, k=num_words)), encoding="utf-8", newline="")
    return folder


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a Parquet file."""
    from pyarrow import Table
    from pyarrow.parquet import write_table

    write_table(Table.from_pylist(rows), file)
    return file
