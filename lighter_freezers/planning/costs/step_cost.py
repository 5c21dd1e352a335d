"""The cost of one training step: floating-point operations, and the bytes kept for the backward pass."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["SavedBytes", "StepCost", "StepMeter", "leaves_no_trace", "measure_step", "tensors_in"]


@dataclass(frozen=True)
class StepCost:
    """The cost of one step, without the optimizer's part.

    Attributes:
        flops: Floating-point operations of matrix products and attention, forward and backward.
        forward_flops: Those before the backward pass started, without what checkpointing recomputes.
        saved_bytes: The most bytes kept for the backward pass at a time. Parameters, buffers and the batch do
            not count, nor what checkpointing recomputes for one block at a time.
    """

    flops: int
    forward_flops: int
    saved_bytes: int


class StepMeter:
    """Counts what happens between enter and exit, which may be in two different hooks.

    An optimizer step inside adds nothing: it has no matrix products and keeps nothing for a backward pass.

    Args:
        model: Its parameters and buffers do not count as kept.
        batch: The tensors in it do not count either.
    """

    def __init__(self, model: nn.Module, batch: object = None) -> None:
        self._saved = SavedBytes([*model.parameters(), *model.buffers(), *tensors_in(batch)])
        self._counter = FlopCounterMode(display=False)
        self._forward_flops: int | None = None
        self._exits = ExitStack()

    def __enter__(self) -> "StepMeter":
        self._exits.enter_context(self._counter)
        self._exits.enter_context(self._saved.counting(self._note_backward))
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.close()

    def cost(self) -> StepCost:
        """The cost so far."""
        flops = int(self._counter.get_total_flops())
        return StepCost(
            flops, flops if self._forward_flops is None else self._forward_flops, self._saved.peak
        )

    def _note_backward(self) -> None:
        if self._forward_flops is None:
            self._forward_flops = int(self._counter.get_total_flops())


def measure_step(run_step: Callable[[], object], model: nn.Module, batch: object = None) -> StepCost:
    """Run a step once and count it. The step is real: gradients accumulate, and buffers change.

    Args:
        run_step: Forward and backward.
        model: Its parameters and buffers do not count as kept.
        batch: The tensors in it do not count either.
    """
    with StepMeter(model, batch) as meter:
        run_step()
    return meter.cost()


@contextmanager
def leaves_no_trace(model: nn.Module) -> Iterator[None]:
    """Restore buffers, such as running statistics, and torch's random-number generators at the end."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(device_type=_device_type(model)):
        yield
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


class SavedBytes:
    """Bytes of what autograd keeps for the backward pass, each storage once.

    Args:
        known: Tensors that exist anyway and do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.current = self.peak = 0
        self._known = {_storage(tensor) for tensor in known}
        self._num_uses: dict[int, int] = {}

    @contextmanager
    def counting(self, when_unpacked: Callable[[], None] = lambda: None) -> Iterator["SavedBytes"]:
        """Count what is saved inside.

        Args:
            when_unpacked: Called whenever the backward pass unpacks a saved tensor.
        """

        def unpack(kept: "_Kept") -> Tensor:
            when_unpacked()
            return kept.tensor

        with torch.autograd.graph.saved_tensors_hooks(self._pack, unpack):
            yield self

    def _pack(self, tensor: Tensor) -> "_Kept":
        kept, key = _Kept(tensor), _storage(tensor)
        if key not in self._known:
            num_bytes = tensor.untyped_storage().nbytes()
            self._num_uses[key] = self._num_uses.get(key, 0) + 1
            if self._num_uses[key] == 1:
                self.current += num_bytes
                self.peak = max(self.peak, self.current)
            weakref.finalize(kept, self._drop, key, num_bytes).atexit = False
        return kept

    def _drop(self, key: int, num_bytes: int) -> None:
        self._num_uses[key] -= 1
        if not self._num_uses[key]:
            del self._num_uses[key]
            self.current -= num_bytes


class _Kept:
    """A saved tensor in a wrapper whose release is noticed."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def tensors_in(batch: object) -> list[Tensor]:
    """All tensors inside nested mappings, tuples and lists."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def _device_type(model: nn.Module) -> str:
    """The accelerator whose random numbers a step may use; torch forks those of the CPU anyway."""
    kinds = {parameter.device.type for parameter in model.parameters()} - {"cpu", "meta"}
    return kinds.pop() if kinds else "cuda"
