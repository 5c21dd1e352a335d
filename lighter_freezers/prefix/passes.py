"""One pass of a batch through a frozen prefix: its blocks run and rows are stored, or stored rows return.

The blocks stay where they are. While every row of a batch is stored, each block but the last hands on what it
got, and the last returns the stored rows.
"""

import pickle
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from lighter_freezers.engine.effects.frozen_dtype import computes_in_bfloat16
from lighter_freezers.engine.effects.gradient_leaves import gradient_leaves
from lighter_freezers.prefix.handed import Handed
from lighter_freezers.prefix.keys import row_keys
from lighter_freezers.prefix.store import RowStore, StoredRow

__all__ = [
    "Before",
    "BlockCall",
    "BlockForm",
    "Pass",
    "Refusal",
    "autocast_of",
    "hidden_of",
    "mode_of",
    "refuse_gradient",
]

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


class Refusal(Exception):
    """The cache would be wrong for this prefix; the message says why, and what to write."""


@dataclass(frozen=True)
class BlockCall:
    """What a block gets.

    Attributes:
        arguments: Positional ones.
        keywords: The others.
    """

    arguments: tuple[object, ...]
    keywords: dict[str, object]

    @cached_property
    def _leaves(self) -> list[object]:
        return tree_leaves((self.arguments, self.keywords), is_leaf=_is_history)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All of them; the first are the hidden states."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    @property
    def hidden(self) -> Tensor:
        """The hidden states."""
        tensors = self.tensors
        if tensors and isinstance(tensors[0], Handed):
            return tensors[0]  # to ask for its shape would be to use it
        if not tensors or not tensors[0].ndim or not tensors[0].is_floating_point():
            raise Refusal("its first layer gets no hidden states as its first tensor")
        return tensors[0]

    @property
    def real(self) -> "BlockCall":
        """The same call with what blocks return in place of what they handed on."""
        both = self.arguments, self.keywords
        is_handed = any(isinstance(tensor, Handed) for tensor in self.tensors)
        if not is_handed:
            return self
        return BlockCall(*tree_map_only(Handed, Handed.computed, both, is_leaf=_is_history))

    @property
    def has_history(self) -> bool:
        """Whether it gets a KV cache, which `generate` reads later."""
        return any(map(_is_history, self._objects))

    @property
    def _objects(self) -> list[object]:
        return [leaf for leaf in self._leaves if not isinstance(leaf, (Tensor, *_PLAIN))]

    def keys(self, mode: object) -> list[bytes]:
        """The key of each row."""
        strange = [leaf for leaf in self._objects if not _is_history(leaf)]
        if strange:
            raise Refusal(f"its layers get a {type(strange[0]).__name__}, whose content cannot be compared")
        hidden, *others = self.tensors
        plain = [leaf if isinstance(leaf, _PLAIN) else type(leaf).__name__ for leaf in self._leaves]
        return row_keys(hidden, others, (sorted(self.keywords), plain, mode))


def _is_history(value: object) -> bool:
    """Whether it is a KV cache: one object that blocks write to, also where torch could take it apart."""
    return hasattr(value, "get_seq_length")


@dataclass(frozen=True)
class _Input:
    number: int  # of a tensor that the block gets, and returns as it is


@dataclass(frozen=True)
class BlockForm:
    """How a block returns hidden states: alone, or first in a tuple with others.

    Attributes:
        others: What follows in the tuple: a plain value, or which input tensor it is.
        is_alone: Whether it returns a tensor.
        is_alike: Whether this has shape, dtype and device of the hidden states that the block gets.
        runs: Whether it has to run for what follows, as the first block of a T5 does for its position bias.
    """

    others: tuple[object, ...] = ()
    is_alone: bool = True
    is_alike: bool = True
    runs: bool = False

    @classmethod
    def of(cls, call: BlockCall, output: object, *, is_first: bool) -> "BlockForm":
        """The form of an output."""
        if isinstance(output, Tensor):
            return cls(is_alike=_looks(output) == _looks(call.hidden))
        if not isinstance(output, (tuple, list)) or hasattr(output, "_fields"):
            raise Refusal(f"its layers return a {type(output).__name__}")
        if not output or not isinstance(output[0], Tensor):
            raise Refusal("its layers return no hidden states as their first value")
        is_alike = _looks(output[0]) == _looks(call.hidden)
        inputs = call.tensors
        others: list[object] = []
        runs = False
        for other in output[1:]:
            place = next((place for place, known in enumerate(inputs) if known is other), None)
            if place is not None:
                others.append(_Input(place))
            elif isinstance(other, _PLAIN):
                others.append(other)
            elif is_first and isinstance(other, Tensor):
                runs = True
            else:
                raise Refusal("its layers return more than hidden states, such as attention weights")
        return cls(tuple(others), False, is_alike, runs)

    def filled(self, hidden: Tensor, call: BlockCall, output: object = None) -> object:
        """An output of this form.

        Args:
            hidden: The hidden states in it.
            call: What the block got.
            output: What the block returned, if it ran.
        """
        if self.is_alone:
            return hidden
        if isinstance(output, (tuple, list)):
            return (hidden, *output[1:])
        inputs = call.tensors
        return (hidden, *(inputs[each.number] if isinstance(each, _Input) else each for each in self.others))


def _looks(hidden: Tensor) -> tuple[object, ...]:
    return hidden.shape, hidden.dtype, hidden.device


def hidden_of(output: object) -> Tensor:
    """The hidden states that a block returned."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(hidden, Tensor)
    return hidden


def autocast_of(hidden: Tensor) -> torch.autocast:
    """A context in which autocast is as it is now."""
    kind = hidden.device.type
    is_cast = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=is_cast)


def mode_of(blocks: Sequence[nn.Module], hidden: Tensor) -> tuple[object, ...]:
    """What an output of blocks depends on besides weights, settings of modules and inputs: autocast."""
    kind = hidden.device.type
    is_cast = torch.is_autocast_enabled(kind)
    return (
        tuple(computes_in_bfloat16(block) for block in blocks),
        is_cast,
        str(torch.get_autocast_dtype(kind)) if is_cast else "",
    )


@dataclass
class Pass:
    """One batch on its way through the prefix.

    Attributes:
        keys: Of the rows.
        rows: The stored rows, unless the blocks only run.
        store: Of the rows.
        device: Of the hidden states.
        autocast: As it was when the first block was called.
        before: The state before the blocks run; None if they are skipped.
    """

    keys: list[bytes]
    rows: Sequence[StoredRow] | None
    store: RowStore
    device: torch.device
    autocast: torch.autocast
    before: "Before | None" = None


class Before:
    """The state before a prefix runs, to see what running it changes."""

    def __init__(self, blocks: Iterable[nn.Module], hidden: Tensor) -> None:
        self._modules = [module for block in blocks for module in block.modules()]
        self._buffers = [buffer for module in self._modules for buffer in module.buffers(recurse=False)]
        self._versions = self._current()
        self._device = hidden.device
        self._numbers = _random_states(self._device)
        self._others = _other_random_states()

    def _current(self) -> list[int]:
        return [0 if buffer.is_inference() else buffer._version for buffer in self._buffers]

    def check(self) -> None:
        """Refuse a prefix whose output does not depend on its input alone."""
        numbers = zip(self._numbers, _random_states(self._device), strict=True)
        if self._others != _other_random_states() or not all(torch.equal(*pair) for pair in numbers):
            raise Refusal("it draws random numbers: dropout or stochastic depth is active in it")
        if self._versions != self._current():
            raise Refusal("its buffers change when it runs: a batch or spectral norm in it trains")
        norms = [module for module in self._modules if isinstance(module, _BatchNorm)]
        if any(norm.training or norm.running_mean is None for norm in norms):
            raise Refusal("a batch norm in it normalises with the other rows of the batch")


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _other_random_states() -> tuple[object, ...]:
    """Of Python and NumPy, from which some models draw the layers that they skip."""
    return random.getstate(), pickle.dumps(np.random.get_state())


def refuse_gradient(hidden: Tensor, names: Callable[[set[int]], str]) -> None:
    """Refuse where something below the prefix learns through it."""
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return
    leaves = list(gradient_leaves(hidden))
    learning = {id(leaf) for leaf in leaves if isinstance(leaf, nn.Parameter)}
    if learning or None in leaves:
        raise Refusal(f"what is below it trains: {names(learning) or 'a checkpointed part'}")
