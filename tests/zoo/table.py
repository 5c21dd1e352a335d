"""The zoo as a table: `python -m tests.zoo.table` writes the rows of `docs/zoo.md` from `expected.txt`.

A row of `expected.txt` has, between bars: model, stacks of blocks with their number, embeddings, final norms,
heads, what has no place of its own, and embeddings whose weight the head shares; each as paths; and what is
special about it. Write a row from the source of the model: `test_zoo.py` compares the rows with what the
package answers, and with the order in which a forward pass calls the modules that they name.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lighter_freezers.selection.anatomy import Anatomy

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "zoo.md"
REFUSED = "refused"
HEADER = """# What is a layer: the zoo

Models built small from their real classes, and what the layer functions take for their layers.
Each row is a test.
Rows of timm, MONAI and segmentation-models-pytorch are skipped where these are not installed.
Rows are the answers of the package, read against the architecture of the model.
The independent check is a forward pass.
The tests compare each row with the answer of the package, and where one runs with the order of that pass.
Names that begin with `drawn_` are plain PyTorch with unusual code.
Those with `hf_` are models of transformers at their default sizes.
`refused` means that a verb ends with an error that shows what was found and asks for `blocks:`.
This table is made by `python -m tests.zoo.table`.

| model | layers | blocks | final norm | head | what is special |
|---|---|---|---|---|---|
"""


class Row(NamedTuple):
    """What is expected of one model; each field is a string of paths."""

    name: str
    stacks: str
    embeddings: str
    norms: str
    heads: str
    others: str
    tied: str
    note: str = ""


def rows() -> dict[str, Row]:
    """All rows by the name of the model."""
    lines = (HERE / "expected.txt").read_text().splitlines()
    return {row.name: row for row in (Row(*map(str.strip, line.split("|"))) for line in lines if line)}


def row_of(name: str, anatomy: Anatomy, every: Sequence[str]) -> Row:
    """What an anatomy says, in the words of the table."""
    stacks = " ".join(f"{stack.path or '.'}:{len(stack.blocks)}" for stack in anatomy.stacks)
    groups = (anatomy.embeddings, anatomy.final_norms, anatomy.heads, anatomy.others, anatomy.tied)
    paths = [shortest(group, every) for group in groups]
    return Row(name, stacks or REFUSED, *paths)


def shortest(names: Iterable[str], every: Sequence[str]) -> str:
    """The fewest paths below which there are these names, and no others."""
    chosen = set(names)
    below: dict[str, list[str]] = {}
    for name in every:
        segments = name.split(".")
        for length in range(1, len(segments) + 1):
            below.setdefault(".".join(segments[:length]), []).append(name)
    whole = [path for path, inside in below.items() if chosen.issuperset(inside)]
    found = set(whole)
    outermost = [path for path in whole if path.rpartition(".")[0] not in found]
    return " ".join(outermost)


def _cell(paths: str) -> str:
    return "<br>".join(f"`{path}`" for path in paths.split())


def main() -> None:
    """Write the page."""
    lines = []
    for row in rows().values():
        if row.stacks == REFUSED:
            lines.append(f"| {row.name} | refused | | | | {row.note} |")
            continue
        number = sum(int(stack.rpartition(":")[2]) for stack in row.stacks.split())
        cells = (row.name, str(number), _cell(row.stacks), _cell(row.norms), _cell(row.heads), row.note)
        lines.append(f"| {' | '.join(cells)} |")
    DOCS.write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
