"""Turns the JSON files of a folder into Markdown: `python -m benchmarks.render benchmarks/results`.

With `--into docs/benchmarks.md` the tables go behind the comments `<!-- results: B1 -->` of that page, in
place of those of the last time.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import shown
from benchmarks.study_output import filled

MET = {True: "yes", False: "**no**", None: ""}


def table(result: dict[str, Any]) -> str:
    """One benchmark: its table, and what it was measured with."""
    lines = ["| what | measured | target | met |", "|---|---|---|---|"]
    for row in result["rows"]:
        target = "" if row["target"] is None else f"at most {shown(row['target'], row['unit'])}"
        lines.append(
            f"| {row['what']} | {shown(row['value'], row['unit'])} | {target} | {MET[row['is_met']]} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"`{result['command']}`, {result['date']}: {result['method']}.", f"With {versions}."]
    lines += [f"Skipped: {what}." for what in result["skipped"]]
    if changed := result.get("changed"):
        lines.append(f"Changed since, and not measured again: {', '.join(f'`{part}`' for part in changed)}.")
    return "\n".join(lines)


def results(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder, by the number of the benchmark."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda result: int(result["benchmark"].removeprefix("B")))


def render(found: Sequence[dict[str, Any]]) -> str:
    """All tables under headings."""
    return "\n\n".join(f"## {result['benchmark']}: {result['title']}\n\n{table(result)}" for result in found)


def fill(page: str, found: Sequence[dict[str, Any]]) -> str:
    """A page with the tables behind their comments.

    Raises:
        ValueError: The page has no comment for a benchmark.
    """
    for result in found:
        page = filled(page, result["benchmark"], table(result))
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser("benchmarks.render", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, metavar="PAGE")
    options = parser.parse_args(arguments)
    found = results(options.folder)
    if options.into is None:
        print(render(found))
    else:
        options.into.write_text(fill(options.into.read_text(), found))


if __name__ == "__main__":
    main()
