"""Networks of four blocks between a stem and a head."""

from collections.abc import Callable

import torch
from torch import nn

from tests.lab import WIDTH


class Blocks(nn.Module):
    """A stem, four blocks and a head."""

    def __init__(self, *inside: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        parts = (lambda: nn.Linear(WIDTH, WIDTH), *inside)
        self.blocks = nn.ModuleList(nn.Sequential(*(part() for part in parts), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
