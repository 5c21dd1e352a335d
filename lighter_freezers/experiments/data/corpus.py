"""A corpus: documents in three splits, and a digest of them. Reads no files."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

__all__ = ["SPLITS", "Corpus"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Corpus:
    """Documents for training, validation and test.

    Args:
        train: Documents for training.
        val: Documents for validation during training.
        test: Documents that are used once, at the end.
        source: Their origin, for a log line.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    source: str

    def split(self, name: str) -> tuple[str, ...]:
        """The documents of `train`, `val` or `test`."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def num_bytes(self, name: str) -> int:
        """The number of UTF-8 bytes of a split."""
        return sum(len(document.encode()) for document in self.split(name))

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all text and of its split, in hexadecimal."""
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
