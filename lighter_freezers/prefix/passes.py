"""One pass of a batch through a frozen prefix: its blocks run and rows are stored, or stored rows return.

The blocks stay where they are. While every row of a batch is stored, each block but the last hands on what it
got, and the last returns the stored rows.
"""

import pickle
import random
import weakref
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from lighter_freezers.engine.effects.frozen_dtype import computes_in_bfloat16
from lighter_freezers.engine.effects.gradient_leaves import gradient_leaves
from lighter_freezers.prefix.keys import row_keys
from lighter_freezers.prefix.store import StoredRow

__all__ = [
    "Before",
    "BlockCall",
    "BlockForm",
    "Pass",
    "Probe",
    "Refusal",
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
        return tree_leaves((self.arguments, self.keywords))

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All of them; the first are the hidden states."""
        return [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]

    @property
    def hidden(self) -> Tensor:
        """The hidden states."""
        tensors = self.tensors
        if not tensors or not tensors[0].ndim or not tensors[0].is_floating_point():
            raise Refusal("its first layer gets no hidden states as its first tensor")
        return tensors[0]

    def with_hidden(self, hidden: Tensor) -> "BlockCall":
        """The same call with other hidden states."""
        old = self.hidden
        arguments = tuple(hidden if each is old else each for each in self.arguments)
        keywords = {key: hidden if each is old else each for key, each in self.keywords.items()}
        return BlockCall(arguments, keywords)

    @property
    def has_history(self) -> bool:
        """Whether it gets a KV cache, which `generate` reads later."""
        return any(hasattr(leaf, "get_seq_length") for leaf in self._objects)

    @property
    def _objects(self) -> list[object]:
        return [leaf for leaf in self._leaves if not isinstance(leaf, (Tensor, *_PLAIN))]

    def keys(self, mode: object) -> list[bytes]:
        """The key of each row."""
        strange = [leaf for leaf in self._objects if not hasattr(leaf, "get_seq_length")]
        if strange:
            raise Refusal(f"its layers get a {type(strange[0]).__name__}, whose content cannot be compared")
        hidden, *others = self.tensors
        plain = [leaf if isinstance(leaf, _PLAIN) else type(leaf).__name__ for leaf in self._leaves]
        return row_keys(hidden, others, (sorted(self.keywords), plain, mode))


@dataclass(frozen=True)
class _Input:
    number: int  # of a tensor that the block gets, and returns as it is


@dataclass(frozen=True)
class BlockForm:
    """How a block returns hidden states: alone, or first in a tuple with others.

    Attributes:
        others: What follows in the tuple: a plain value, or which input tensor it is.
        is_alone: Whether it returns a tensor.
        runs: Whether it has to run for what follows, as the first block of a T5 does for its position bias.
    """

    others: tuple[object, ...] = ()
    is_alone: bool = True
    runs: bool = False

    @classmethod
    def of(cls, call: BlockCall, output: object, *, is_first: bool) -> "BlockForm":
        """The form of an output."""
        if isinstance(output, Tensor):
            return cls()
        if not isinstance(output, (tuple, list)) or not output or not isinstance(output[0], Tensor):
            raise Refusal(f"its layers return a {type(output).__name__}")
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
        return cls(tuple(others), False, runs)

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


def hidden_of(output: object) -> Tensor:
    """The hidden states that a block returned."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(hidden, Tensor)
    return hidden


def mode_of(blocks: Sequence[nn.Module], hidden: Tensor) -> tuple[object, ...]:
    """What an output of blocks depends on besides weights and inputs: mode and autocast."""
    kind = hidden.device.type
    is_cast = torch.is_autocast_enabled(kind)
    return (
        tuple((block.training, computes_in_bfloat16(block)) for block in blocks),
        is_cast,
        str(torch.get_autocast_dtype(kind)) if is_cast else "",
    )


@dataclass
class Pass:
    """One batch on its way through the prefix.

    Attributes:
        keys: Of the rows.
        rows: The stored rows, unless the blocks only run.
        num_done: Blocks that were called.
        before: The state before the blocks run; None if they are skipped.
        is_probe: Whether to find out if anything but the last block leads past the prefix.
        output: What the last block returned.
        inner: The same for the next block, if it must not get a gradient.
        kept: References to what was handed from block to block, by the number of the block.
    """

    keys: list[bytes]
    rows: Sequence[StoredRow] | None
    before: "Before | None"
    is_probe: bool
    num_done: int = 0
    output: Tensor | None = None
    inner: Tensor | None = None
    kept: dict[int, "weakref.ref[Tensor]"] = field(default_factory=dict)

    def handed(self, number: int, hidden: Tensor, inner: Tensor | None = None) -> None:
        """Remember what a block returned."""
        self.kept[number], self.output, self.num_done = weakref.ref(hidden), hidden, number + 1
        self.inner = inner

    def still_kept(self, last: int, ends: Container[int]) -> int | None:
        """The number of the first block whose output still exists, of those up to `last`.

        Args:
            last: The last block that counts.
            ends: Last blocks of their stacks, whose output the call of the next stack keeps.
        """
        alive = [number for number, reference in self.kept.items() if reference() is not None]
        return next((number for number in alive if number <= last and number not in ends), None)

    def is_next(self, number: int, call: BlockCall) -> bool:
        """Whether this block gets what the one before returned."""
        hidden, output = call.hidden, self.output
        if number != self.num_done or output is None:
            return False
        return hidden is output or (
            hidden.data_ptr() == output.data_ptr() and hidden.shape == output.shape and hidden.numel() > 0
        )


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


class Probe(torch.autograd.Function):
    """Hands hidden states on, and tells when a gradient reaches them: something past the prefix uses them."""

    @staticmethod
    def forward(
        ctx: Any,  # torch does not type it
        hidden: Tensor,
        _: Tensor,
        tell: Callable[[], None],
    ) -> Tensor:
        """The same values; the second tensor requires a gradient, so that the output does."""
        ctx.tell = tell
        return hidden.view_as(hidden)

    @staticmethod
    def backward(
        ctx: Any,  # torch does not type it
        gradient: Tensor,
    ) -> tuple[None, None, None]:
        """End the gradient here, as it ends in the frozen prefix."""
        ctx.tell()
        return None, None, None
