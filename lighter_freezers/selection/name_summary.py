"""Names in one short phrase for a log line or an error."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["NameSummary", "first_few"]

TRUNKS = ("network", "model", "base_model", "transformer")  # leading segments a reader does not need


def first_few(items: Sequence[str], num_items: int = 3) -> str:
    """The first items of a list, and how many more there are: `wte, wpe, h.0 and 4 more`."""
    num_more = len(items) - num_items
    return ", ".join(items[:num_items]) + (f" and {num_more} more" if num_more > 0 else "")


class NameSummary:
    """Summarises sets of names of one model. What all of them share is computed once.

    Args:
        all_names: Canonical names of all parameters of the model, in model order.
    """

    def __init__(self, all_names: Sequence[str]) -> None:
        self._enclosing = {name: _enclosing(name) for name in all_names}
        self._position = {name: position for position, name in enumerate(all_names)}
        self._sizes = Counter(path for paths in self._enclosing.values() for path in paths)

    def compress(self, names: Iterable[str], num_items: int = 6) -> str:
        """Name parameters as briefly as a log line needs: `wte, h.0-5, ln_f.weight and 12 more`.

        A module stands for its parameters if all of them are in the set. Paths that differ in their first
        index only are joined: `h.0-5`, `h.0-5.attn`.

        Args:
            names: Canonical names of the parameters to summarise.
            num_items: How many items to write out before the rest is only counted.
        """
        chosen = sorted(set(names), key=self._position.__getitem__)
        if chosen and len(chosen) == len(self._position):
            return "all parameters"
        items = [_without_trunk(item) for item in _join_indices(self.whole_modules(chosen))]
        return first_few(items, num_items) or "no parameters"

    def whole_modules(self, chosen: Sequence[str]) -> list[str]:
        """The outermost modules that are chosen as a whole, and the chosen parameters outside of these."""
        counts = Counter(path for name in chosen for path in self._enclosing[name])
        whole = (
            next((path for path in self._enclosing[name] if counts[path] == self._sizes[path]), name)
            for name in chosen
        )
        return list(dict.fromkeys(whole))


def _enclosing(name: str) -> list[str]:
    """Paths of the modules a parameter is in, outermost first."""
    segments = name.split(".")
    return [".".join(segments[:length]) for length in range(1, len(segments))]


def _join_indices(paths: Iterable[str]) -> Iterator[str]:
    """Join paths that differ in their first index only; the order is that of first appearance."""
    indices: dict[tuple[str, str], list[int]] = {}
    for path in paths:
        segments = path.split(".")
        position = next((i for i, segment in enumerate(segments) if segment.isdecimal()), len(segments))
        before, after = ".".join(segments[:position]), ".".join(segments[position + 1 :])
        indices.setdefault((before, after), []).extend(map(int, segments[position : position + 1]))
    for (before, after), group in indices.items():
        spans = _spans(sorted(group)) if group else [""]
        yield from (".".join(filter(None, (before, span, after))) for span in spans)


def _spans(indices: Sequence[int]) -> list[str]:
    """[0, 1, 2, 5] -> ["0-2", "5"]."""
    starts = [index for index in indices if index - 1 not in indices]
    ends = [index for index in indices if index + 1 not in indices]
    return [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]


def _without_trunk(item: str) -> str:
    head, _, rest = item.partition(".")
    return _without_trunk(rest) if rest and head in TRUNKS else item
