"""A library that is imported with its first model: some take seconds, which every run of pytest would pay."""

from importlib import import_module
from typing import Any

import torch

__all__ = ["LazyLibrary"]


class LazyLibrary:
    """Stands for a module until something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        with torch.device("cpu"):  # a model may be built on the meta device
            return getattr(import_module(self._name), attribute)
