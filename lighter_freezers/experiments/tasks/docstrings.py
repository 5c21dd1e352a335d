"""Docstrings: the source of a function without its docstring -> the docstring's first line.

Real data on every machine: the functions of the standard library of the running Python. Rows have
`name`, `source` and `summary`.
"""

import ast
import hashlib
import json
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from lighter_freezers.experiments.data.cache import cache_folder, keep
from lighter_freezers.experiments.data.corpus import SPLITS
from lighter_freezers.experiments.data.fields import clean_text
from lighter_freezers.experiments.data.prompts import PromptedRow, PromptedTask, prompted
from lighter_freezers.experiments.data.rows import Row
from lighter_freezers.experiments.data.standard_library import library_modules, standard_library

__all__ = ["DOCSTRINGS", "library_docstrings", "summarised_functions"]

INSTRUCTION = "Say in one line what this Python function does."
FORMAT = 1  # of the cached files; a new number creates them again
FEWEST_WORDS = 3  # words of a summary at least, to exclude "Return it."

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _read(row: Row) -> PromptedRow:
    name, source, summary = clean_text(row, "name"), clean_text(row, "source"), clean_text(row, "summary")
    module = name.partition(":")[0]
    return prompted(row, INSTRUCTION, {"Function": source}, "Summary", summary, cut="Function", origin=module)


def library_docstrings(cache_dir: Path | None = None, root: Path | None = None) -> tuple[Path, str]:
    """The folder with the functions of the standard library, `train.jsonl` and so on, created if missing.

    A module is in the same split as in `standard_library`. A source that occurs in several modules is kept
    once, preferably in the training split.

    Args:
        cache_dir: The cache folder. None means that of this package.
        root: Folder of the standard library. None for that of the running Python.

    Returns:
        The folder, and a description of Python version and text.

    Raises:
        RuntimeError: The library has no source files, or the cache is not writable.
    """
    corpus = standard_library(root)
    folder = cache_folder(cache_dir) / f"docstrings-{corpus.digest[:16]}-{FORMAT}"
    if not all((folder / f"{split}.jsonl").is_file() for split in SPLITS):
        for split, lines in _lines(library_modules(root)).items():
            keep(folder / f"{split}.jsonl", "".join(lines).encode())
    return folder, f"functions of the {corpus.source}, digest {corpus.digest[:16]}"


def _lines(modules: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """JSON lines for each split, no source twice."""
    seen: set[str] = set()
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for module, text in modules[split].items():
            for name, source, summary in summarised_functions(text):
                digest = hashlib.sha256(source.encode()).hexdigest()
                if digest not in seen:
                    seen.add(digest)
                    row = {"name": f"{module}:{name}", "source": source, "summary": summary}
                    lines[split].append(f"{json.dumps(row)}\n")
    return lines


def summarised_functions(source: str) -> Iterator[tuple[str, str, str]]:
    """Name, source without docstring, and first line of the docstring, of each function that has one.

    A function is skipped if it has nothing but its docstring, if the first line of that has fewer than three
    words, or if the docstring shares a line with other code.

    Args:
        source: A Python module.

    Raises:
        SyntaxError: The running Python cannot parse it.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n")  # all are line ends for the parser
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no warnings about invalid escapes in code that is only read
        tree = ast.parse(source)
    lines = source.split("\n")
    for node in ast.walk(tree):
        if isinstance(node, Function):
            summary = _summary(node)
            if summary and (text := _without_docstring(node, lines)):
                yield node.name, text, summary


def _summary(function: Function) -> str:
    """The first line of the docstring; empty if it has too few words."""
    documentation = (ast.get_docstring(function) or "").strip()
    first = documentation.split("\n")[0].strip()
    return first if len(first.split()) >= FEWEST_WORDS else ""


def _without_docstring(function: Function, lines: list[str]) -> str:
    """The source of a function without the lines of its docstring; empty if nothing else is on them."""
    docstring, *body = function.body
    last = docstring.end_lineno or docstring.lineno
    is_alone = lines[docstring.lineno - 1][: docstring.col_offset].isspace()
    if not body or not is_alone or body[0].lineno <= last:
        return ""
    kept = [*lines[function.lineno - 1 : docstring.lineno - 1], *lines[last : function.end_lineno]]
    return textwrap.dedent("\n".join(line.rstrip() for line in kept))


DOCSTRINGS = PromptedTask(
    name="docstrings",
    metrics=("rouge", "bleu", "exact_match"),
    max_new_tokens=48,
    read=_read,
    on_this_machine=library_docstrings,
)
