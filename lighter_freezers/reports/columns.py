"""Tables and numbers as plain text, for a terminal."""

from collections.abc import Sequence

__all__ = ["amount", "columns", "num_bytes"]


def columns(rows: Sequence[Sequence[str]], num_left: int = 1) -> list[str]:
    """Rows of cells as lines: the first columns to the left, the others to the right.

    Args:
        rows: The first is the heading.
        num_left: How many columns are left-aligned.
    """
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if index < num_left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def amount(number: float | None) -> str:
    """A count with three digits and k, M, G or T."""
    if number is None:
        return "-"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def num_bytes(number: int | None) -> str:
    """Bytes with three digits and their unit."""
    return "-" if number is None else f"{amount(number)}B" if number >= 1000 else f"{number} B"
