"""What the studies share: their output options, the command that repeats one, and its tables in a page."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUTPUTS = ("json", "into")


def add_outputs(options: argparse.ArgumentParser) -> None:
    """The options that say where the results go."""
    options.add_argument("--json", type=Path, metavar="PATH", help="write results and versions to this file")
    options.add_argument("--into", type=Path, metavar="PAGE", help="write the tables into this page")


def command_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command with the options that differ from their defaults, but for paths on this machine."""
    given = {
        name: value
        for name, value in vars(options).items()
        if name not in (*OUTPUTS, "checkpoint") and value != parser.get_default(name)
    }
    asked = "".join(f" --{name.replace('_', '-')} {value}" for name, value in given.items())
    return f"python -m {parser.prog}{asked}"


def filled(text: str, study: str, tables: str) -> str:
    """A page with tables between the marks of a study, in place of those of the last time.

    Raises:
        ValueError: The page has no mark for it.
    """
    mark, end = f"<!-- results: {study} -->", f"<!-- end: {study} -->"
    before, found, rest = text.partition(mark)
    if not found:
        raise ValueError(f"The page has no {mark}. Add it where the tables belong.")
    after = rest.partition(end)[2] if end in rest else rest
    return f"{before}{mark}\n\n{tables}\n\n{end}{after}"


def write(options: argparse.Namespace, result: Mapping[str, Any], study: str, tables: str) -> None:
    """Write results and tables where the options ask for them."""
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.into is not None:
        options.into.write_text(filled(options.into.read_text(), study, tables))
