"""SST-2: a sentence of a film review -> negative or positive.

The archive has files of columns between tabs, without quotes, named in the first line: `sentence` and
`label`, 0 or 1. The labels of its test file are not public, so `dev.tsv` is the test.
[Socher et al. 2013](https://aclanthology.org/D13-1170/).
"""

from collections.abc import Iterator
from pathlib import Path

from lighter_freezers.experiments.data.fields import clean_text
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, prompted
from lighter_freezers.experiments.data.rows import Row, shown
from lighter_freezers.reports.whole_files import naming

__all__ = ["SST2"]

INSTRUCTION = "Say whether this sentence of a film review is negative or positive."
LABELS = ("negative", "positive")  # in the order of their numbers


def _rows(file: Path) -> Iterator[Row]:
    with naming(file, "a file of SST-2 in UTF-8"):
        header, *lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    names = header.split("\t")
    for number, line in enumerate(lines, start=1):
        values = line.split("\t")
        if len(values) > len(names):
            raise ValueError(f"{file}, row {number}: expected {len(names)} columns, got {len(values)}.")
        yield Row(file, number, dict(zip(names, values, strict=False)), is_text=True)


def _read(row: Row) -> PromptedRow:
    sentence, label = clean_text(row, "sentence"), clean_text(row, "label")
    if label not in ("0", "1"):
        raise row.error("label", "0 or 1", shown(label))
    return prompted(row, INSTRUCTION, {"Sentence": sentence}, "Label", LABELS[int(label)], cut="Sentence")


SST2 = PromptedTask(
    name="sst2",
    metrics=("accuracy",),
    max_new_tokens=8,
    patterns={"train": ("train*",), "val": ("val*",), "test": ("dev*",)},
    read=_read,
    formats={".tsv": _rows},
    hub=("https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",),
    labels=LABELS,
)
