"""What a corpus is: documents in three splits, and a digest of them. Nothing is read here."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

__all__ = ["SPLITS", "Corpus"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Corpus:
    """Texts to learn from, to validate on and to test on.

    Args:
        train: Documents to learn from.
        val: Documents to validate on while training.
        test: Documents that are looked at once, at the end.
        source: Where they come from, in words for a log line.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    source: str

    def split(self, name: str) -> tuple[str, ...]:
        """The documents of `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def num_bytes(self, name: str) -> int:
        """How many UTF-8 bytes a split has."""
        return sum(len(document.encode()) for document in self.split(name))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all text and of how it is split, in hexadecimal."""
        sha = hashlib.sha256()
        for name in SPLITS:
            for document in self.split(name):
                encoded = document.encode()
                sha.update(f"{name} {len(encoded)}\n".encode())
                sha.update(encoded)
        return sha.hexdigest()

    def describe(self) -> str:
        """One line for the log: source, sizes and digest."""
        sizes = ", ".join(
            f"{name} {len(self.split(name))} documents / {self.num_bytes(name):,} bytes"
            for name in SPLITS
            if self.split(name)
        )
        return f"{self.source}: {sizes}; digest {self.digest[:16]}"
