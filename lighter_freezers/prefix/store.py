"""Rows of hidden states on disk, by key. Several processes read and write one folder without locks.

Each process appends to two files of its own, `*.rows` and `*.index`, an entry of the index only after its
row; it maps the files of all processes for reading. So a process that dies leaves whole entries, and a later
run with the same folder continues with them.
"""

import math
import mmap
import os
import secrets
import shutil
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lighter_freezers._log import log

__all__ = ["RowStore", "StoredRow"]

_ENTRY = struct.Struct("<16sQBBB5xIIIIII")  # key, offset, dtype stored, dtype computed, dimensions, sizes
_MOST_DIMENSIONS = 6
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would write each byte 10 as two
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class StoredRow(NamedTuple):
    """Where a row is."""

    file: int
    offset: int
    dtype: torch.dtype
    computed: torch.dtype  # in which the model computes it
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.dtype.itemsize * math.prod(self.shape)


class RowStore:
    """The rows of one version of a prefix.

    Args:
        folder: Where; created with the first row. All processes of a node use the same.
        dtype: In which float32 rows are stored; rows of another dtype stay as they are.
        max_bytes: Of all processes together: after these no row is added.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, max_bytes: int) -> None:
        self._folder = folder
        self._dtype = dtype
        self._max_bytes = max_bytes
        self._rows: dict[bytes, StoredRow] = {}
        self._files: dict[Path, int] = {}  # the rows of all processes, open: another may delete them
        self._read: dict[Path, int] = {}  # bytes of each index that are known
        self._maps: dict[int, memoryview] = {}
        self._own: tuple[int, int] | None = None  # what this process writes: rows, index
        self.num_bytes = 0
        self.is_writable = True

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, keys: Sequence[bytes]) -> list[StoredRow] | None:
        """The rows with these keys; None unless all are there, of one shape."""
        found = [self._rows.get(key) for key in keys]
        if None in found:
            self._look_at_others()
            found = [self._rows.get(key) for key in keys]
        rows = [row for row in found if row is not None]
        is_whole = len(rows) == len(keys) and len({row[2:] for row in rows}) == 1
        return rows if is_whole else None

    def get(self, rows: Sequence[StoredRow], device: torch.device) -> Tensor:
        """Read rows that `find` found, as one tensor on a device."""
        is_pinned = device.type == "cuda"
        stored = torch.empty(len(rows), *rows[0].shape, dtype=rows[0].dtype, pin_memory=is_pinned)
        target = stored.view(torch.uint8).reshape(-1).numpy().data
        num_bytes = rows[0].num_bytes
        for place, row in enumerate(rows):
            source = self._map(row.file, row.offset + num_bytes)
            target[place * num_bytes : (place + 1) * num_bytes] = source[row.offset : row.offset + num_bytes]
        return stored.to(device, non_blocking=True).to(rows[0].computed)

    def put(self, keys: Sequence[bytes], hidden: Tensor) -> None:
        """Add the rows that are new; a disk without room ends that with one warning."""
        places = {key: place for place, key in enumerate(keys) if key not in self._rows}
        if not self.is_writable or not places or hidden.ndim - 1 > _MOST_DIMENSIONS:
            return
        dtype = self._stored_dtype(hidden)
        rows = hidden.detach()[list(places.values())].to(dtype).cpu().contiguous()
        if self.num_bytes + rows.nbytes > self._max_bytes:
            self._stop(f"max_gb is reached with {len(self._rows)} rows")
            return
        try:
            self._append(list(places), rows, hidden.dtype)
        except OSError as error:
            self._stop(f"writing to {self._folder} failed: {error.strerror}")

    def size_of(self, hidden: Tensor) -> int:
        """Bytes that these rows take."""
        return hidden.numel() * self._stored_dtype(hidden).itemsize

    def close(self) -> None:
        """Close all files; the rows stay on disk."""
        for file in {*self._files.values(), *(self._own or ())}:
            os.close(file)
        self._files, self._read, self._maps, self._own = {}, {}, {}, None
        self._rows, self.num_bytes = {}, 0

    def delete(self) -> None:
        """Close all files and remove them; a process that still reads them may go on."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stored_dtype(self, hidden: Tensor) -> torch.dtype:
        return self._dtype if hidden.dtype == torch.float32 else hidden.dtype

    def _append(self, keys: Sequence[bytes], rows: Tensor, computed: torch.dtype) -> None:
        if self._own is None:
            self._open()
        assert self._own is not None
        file = self._own[0]
        begin = os.lseek(file, 0, os.SEEK_END)
        _write(file, rows.view(torch.uint8).reshape(-1).numpy().data)
        shape = tuple(rows.shape[1:])
        numbers = _DTYPES.index(rows.dtype), _DTYPES.index(computed), len(shape)
        sizes = shape + (0,) * (_MOST_DIMENSIONS - len(shape))
        added = {
            key: StoredRow(file, begin + place * rows[0].nbytes, rows.dtype, computed, shape)
            for place, key in enumerate(keys)
        }
        entries = b"".join(_ENTRY.pack(key, row.offset, *numbers, *sizes) for key, row in added.items())
        _write(self._own[1], memoryview(entries))
        self._rows.update(added)
        self.num_bytes += rows.nbytes

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        rows = self._folder / f"{name}.rows"
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | _BINARY
        file = os.open(rows, flags, 0o666)
        self._files[rows] = file
        self._own = file, os.open(rows.with_suffix(".index"), flags, 0o666)

    def _stop(self, why: str) -> None:
        self.is_writable = False
        log.warning(
            "PrefixCache stores no further row: %s. Batches of stored rows are still served; all others "
            "run as without the cache. More room: PrefixCache(max_gb=..., folder=...), or dtype='bfloat16'.",
            why,
        )

    def _look_at_others(self) -> None:
        """Read the entries that other processes have added since the last look."""
        for index in sorted(self._folder.glob("*.index")):
            rows = index.with_suffix(".rows")
            if self._own and self._files.get(rows) == self._own[0]:
                continue
            with suppress(FileNotFoundError):  # another process deletes a store that is no longer right
                if rows not in self._files:
                    self._files[rows] = os.open(rows, os.O_RDONLY | _BINARY)
                if index.stat().st_size >= self._read.get(index, 0) + _ENTRY.size:
                    self._read_entries(index, self._files[rows])

    def _read_entries(self, index: Path, file: int) -> None:
        with index.open("rb") as entries:
            entries.seek(self._read.get(index, 0))
            content = entries.read()
        num_whole = len(content) // _ENTRY.size * _ENTRY.size
        self._read[index] = self._read.get(index, 0) + num_whole
        for key, offset, stored, computed, num_sizes, *sizes in _ENTRY.iter_unpack(content[:num_whole]):
            row = StoredRow(file, offset, _DTYPES[stored], _DTYPES[computed], tuple(sizes[:num_sizes]))
            self.num_bytes += row.num_bytes
            self._rows.setdefault(key, row)

    def _map(self, file: int, end: int) -> memoryview:
        known = self._maps.get(file)
        if known is None or len(known) < end:
            known = self._maps[file] = memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
        return known


def _write(file: int, content: memoryview) -> None:
    while content:
        content = content[os.write(file, content) :]
