"""Synthetic models of any number of one-element tensors: their number costs time here, not their size."""

from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["NUM_BLOCKS", "Tensors", "half_of_the_prefixes"]

NUM_BLOCKS = 60
TENSORS_PER_CELL = 30  # at 15,000 tensors there are 500 cells, and half of them are 250 prefixes


class Pair(nn.Module):
    """A leaf of the module tree with a weight and, but for a last odd one, a bias."""

    def __init__(self, num_tensors: int) -> None:
        super().__init__()
        for name in ("weight", "bias")[:num_tensors]:
            shape = (1, 1) if name == "weight" else (1,)  # a matrix, as a layer has one
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class Part(nn.Module):
    """The attention or the MLP of a block: some cells of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList()


class Block(nn.Module):
    """A block with the names of a transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Part()
        self.mlp = Part()


class Tensors(nn.Module):
    """`h.B.attn.cells.C.P.weight` and so on: tensors in cells, cells in 60 blocks, and a head that trains.

    Args:
        num_tensors: Tensors in the blocks. The head has one more.
    """

    def __init__(self, num_tensors: int) -> None:
        super().__init__()
        self.h = nn.ModuleList(Block() for _ in range(NUM_BLOCKS))
        parts = [part for block in self.h for part in (block.attn, block.mlp)]
        per_cell = max(1, min(TENSORS_PER_CELL, num_tensors // len(parts)))
        for index, first in enumerate(range(0, num_tensors, per_cell)):
            parts[index * len(parts) // -(-num_tensors // per_cell)].cells.append(
                _cell(min(per_cell, num_tensors - first))
            )
        self.head = nn.Parameter(torch.zeros(1))


def _cell(num_tensors: int) -> nn.Sequential:
    return nn.Sequential(*(Pair(min(2, num_tensors - first)) for first in range(0, num_tensors, 2)))


def half_of_the_prefixes(network: Tensors) -> list[str]:
    """Every other cell, as a prefix: half of the tensors."""
    return list(_cell_prefixes(network))[::2]


def _cell_prefixes(network: Tensors) -> Iterator[str]:
    for number, block in enumerate(network.h):
        for part in ("attn", "mlp"):
            for cell in range(len(getattr(block, part).cells)):
                yield f"h.{number}.{part}.cells.{cell}."
