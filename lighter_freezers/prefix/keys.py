"""Names a row of a batch by the content that the first block gets for it: equal content, equal key."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

__all__ = ["digest_of", "row_keys"]

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**15  # words of a row at a time, or the products would need eight bytes for each element of a batch
_STEP = 0x2545F4914F6CDD1D  # odd: multiplying by it loses nothing


def row_keys(hidden: Tensor, others: Iterable[Tensor], plain: object) -> list[bytes]:
    """A key for each row.

    Args:
        hidden: What the rows are of, (rows, ...).
        others: Further tensors that the block gets. Those with as many rows count row by row, all others
            count for every row.
        plain: What else the output depends on, with a `repr` that says it.
    """
    num_rows, tensors = len(hidden), [hidden, *others]
    shapes = [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors]
    shared, by_row = hashlib.sha256(repr((shapes, plain)).encode()), []
    for content in _contents([_as_rows(tensor, num_rows) for tensor in tensors]):
        if len(content) == num_rows:
            by_row.append(content)
        else:
            shared.update(content[0])
    keys = []
    for row in range(num_rows):
        key = shared.copy()
        for content in by_row:
            key.update(content[row])
        keys.append(key.digest()[:16])
    return keys


def digest_of(tensors: Sequence[Tensor], plain: object) -> str:
    """A name for the content of some tensors; reads each device once."""
    shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
    digest = hashlib.sha256(repr((shapes, plain)).encode())
    for content in _contents([tensor.reshape(1, -1) for tensor in tensors]):
        digest.update(content[0])
    return digest.hexdigest()[:16]


def _as_rows(tensor: Tensor, num_rows: int) -> Tensor:
    """A tensor with as many rows, or with one."""
    if tensor.ndim and len(tensor) == num_rows:
        return tensor[:1] if tensor.stride(0) == 0 else tensor  # one row, repeated: a mask that was expanded
    return tensor.reshape(1, -1)


def _contents(tensors: Sequence[Tensor]) -> list[Sequence[memoryview]]:
    """The bytes of each row of each tensor; of those on a device two numbers, all read together."""
    with torch.no_grad():
        bits = [_bits(tensor) for tensor in tensors]
        sums = [_sums(each) for each in bits if each.device.type != "cpu"]
        sizes = [len(each) for each in sums]
        read = iter(torch.split(torch.cat(sums).cpu(), sizes) if sums else ())
        on_host = [each if each.device.type == "cpu" else next(read) for each in bits]
    return [[row.data for row in each.numpy()] for each in on_host]


def _bits(tensor: Tensor) -> Tensor:
    """The same bits as whole numbers: (rows, ...) -> (rows, words)."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.detach().contiguous().view(_WORDS[tensor.element_size()]).reshape(len(tensor), -1)


def _sums(bits: Tensor) -> Tensor:
    """Two sums modulo 2**64 of all words of a row, each times an odd random number: (rows, 2).

    Two different rows have the same sums with a chance of about 2**-64.
    """
    total = torch.zeros(len(bits), 2, dtype=torch.int64, device=bits.device)
    for start in range(0, bits.shape[1], _CHUNK):
        words = bits[:, start : start + _CHUNK].long()
        factors = _factors(str(bits.device))[:, : words.shape[1]]
        total = total * _STEP + torch.stack([(words * factor).sum(1) for factor in factors], 1)
    return total


@cache
def _factors(device: str) -> Tensor:
    generator = torch.Generator().manual_seed(20)
    numbers = torch.randint(-(2**63), 2**63 - 1, (2, _CHUNK), generator=generator, dtype=torch.int64)
    return (numbers | 1).to(device)
