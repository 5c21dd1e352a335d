"""Which blocks an address means: `3`, `-1`, `0-5`, `:-4`, `0%-50%`, `*`. The names in front are elsewhere."""

import re

__all__ = ["block_indices", "counts_blocks"]


def counts_blocks(address: str) -> bool:
    """Whether an address means blocks by their place: `attn.3`, `block.:-4`, but not `attn.*`."""
    return re.search(r"\.-?\d[-\d:%.]*$|\.:-?\d+$", address) is not None


def block_indices(text: str, num_blocks: int, layer: str) -> list[int] | None:
    """The indices that the end of an address stands for.

    | text | of 8 blocks |
    |---|---|
    | `3`, `-1` | 3, 7 |
    | `0-5` | 0 to 5, both ends |
    | `:-4`, `2:` | as Python's slices |
    | `0%-50%`, `50%` | 0 to 3: x % is floor(x * 8 / 100); never empty unless both ends are equal |
    | `*` | all |

    Args:
        text: What follows the last dot.
        num_blocks: How many there are.
        layer: The whole address, for errors.

    Returns:
        None where the text is no index; an index beyond the blocks comes back as it is.

    Raises:
        ValueError: It runs backwards, or stands for no block.
    """
    if text == "*":
        return list(range(num_blocks))
    if re.fullmatch(r"-\d+", text):
        if int(text) + num_blocks < 0:
            raise ValueError(f"'{layer}' means none of the {num_blocks} blocks.")
        return [int(text) + num_blocks]
    if (span := re.fullmatch(r"(\d+)-(\d+)", text)) is not None:
        first, last = int(span[1]), int(span[2])
        if first > last:
            part = layer.rpartition(".")[0]
            raise ValueError(f"'{layer}' runs backwards: write '{part}.{last}-{first}'.")
        return list(range(first, last + 1))
    if (cut := re.fullmatch(r"(-?\d+)?:(-?\d+)?", text)) is not None:
        found = list(range(num_blocks))[slice(*(int(end) if end else None for end in cut.groups()))]
    elif (share := re.fullmatch(r"(?:(\d+(?:\.\d+)?)%-)?(\d+(?:\.\d+)?)%", text)) is not None:
        found = _of_share(float(share[1] or 0), float(share[2]), num_blocks, layer)
    else:
        return None
    if not found:
        raise ValueError(f"'{layer}' means none of the {num_blocks} blocks.")
    return found


def _of_share(first: float, last: float, num_blocks: int, layer: str) -> list[int]:
    if not first <= last <= 100:
        raise ValueError(f"'{layer}' is no share: write a % to b % from 0 to 100, the smaller first.")
    begin, end = (int(share * num_blocks / 100) for share in (first, last))
    if end == begin and last > first:  # never empty unless 0 %
        end = begin + 1
    return list(range(begin, end))
