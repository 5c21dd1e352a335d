"""SQuAD 1.1: a question about a paragraph -> the words of the paragraph that answer it.

A file is one JSON document: articles in `data`, their `paragraphs` with a `context`, and its `qas` with a
`question` and `answers`, several in the validation file. [Rajpurkar et al. 2016](https://arxiv.org/abs/1606.05250).
"""

import json
from collections.abc import Iterator
from pathlib import Path

from lighter_freezers.experiments.data.fields import clean_text
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, prompted
from lighter_freezers.experiments.data.rows import Row

__all__ = ["SQUAD"]

INSTRUCTION = "Answer the question with words of the text."
HOME = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"


def _rows(file: Path) -> Iterator[Row]:
    """One row for each answer; its number is that of the question."""
    try:
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        asked = [(each["context"], question) for each in paragraphs for question in each["qas"]]
        for number, (context, question) in enumerate(asked, start=1):
            for answer in question["answers"]:
                values = {"context": context, "question": question["question"], "answer": answer["text"]}
                yield Row(file, number, values, is_text=False)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a file of SQuAD 1.1: {type(error).__name__}: {error}.") from error


def _read(row: Row) -> PromptedRow:
    context, question, answer = (clean_text(row, name) for name in ("context", "question", "answer"))
    parts = {"Text": context, "Question": question}
    return prompted(row, INSTRUCTION, parts, "Answer", answer, cut="Text", group=f"{context}\n{question}")


SQUAD = PromptedTask(
    name="squad",
    metrics=("exact_match", "rouge"),
    max_new_tokens=32,
    patterns={"train": ("train*",), "val": ("val*",), "test": ("dev*", "test*")},
    read=_read,
    hub=(f"{HOME}train-v1.1.json", f"{HOME}dev-v1.1.json"),
    formats={".json": _rows},
)
