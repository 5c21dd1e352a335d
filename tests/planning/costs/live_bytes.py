"""Bytes of all tensors that are alive: a count of its own, from every operation that torch dispatches."""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Storages made under this mode, until they are freed; `current` bytes now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        old = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            key, size = storage._cdata, storage.nbytes()
            if key not in old and key not in self._alive:
                self._alive.add(key)
                self.current += size
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._free, key, size)
        return out

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.current -= size


def _storages(tree: Any) -> Iterator[Any]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
