"""Discards graphs of `torch.compile` that were made for other `requires_grad` flags than those of now."""

import sys

import torch
from torch.torch_version import TorchVersion

__all__ = ["GUARDS_FLAGS", "drop_stale_graphs"]

GUARDS_FLAGS = TorchVersion(torch.__version__) >= "2.12"  # tried: 2.6 to 2.11 reuse graphs, 2.12 does not


def drop_stale_graphs() -> None:
    """Have all code compiled again where torch would reuse graphs that give no gradient to what has thawed.

    All graphs of the process go: a parameter does not know what was compiled around it.
    """
    if not GUARDS_FLAGS and "torch._dynamo" in sys.modules:
        torch.compiler.reset()
