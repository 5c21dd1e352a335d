"""Notices any change of the weights of some modules, also one that leaves torch's version counters alone."""

from collections.abc import Sequence

from torch import Tensor, nn

from lighter_freezers.prefix.keys import digest_of

__all__ = ["WeightWatch"]


class WeightWatch:
    """The parameters and buffers of a prefix.

    Version counters, storage pointers, and which adapters PEFT has merged are free to compare. `p.data += x`
    moves none of them: only the content tells then.

    Args:
        blocks: The modules.
        plain: What else names this version of them.
    """

    def __init__(self, blocks: Sequence[nn.Module], plain: object) -> None:
        self._blocks = blocks
        self._plain = plain
        self._modules: list[nn.Module] = []
        self._marks: list[object] = []

    def digest(self) -> str:
        """A name for the content of the weights, which is read."""
        # found anew each time: a merge or a load may have replaced modules
        self._modules = [module for block in self._blocks for module in block.modules()]
        self._marks = self._current()
        found: list[Tensor] = []
        for block in self._blocks:
            found += [*block.parameters(), *block.buffers()]
        return digest_of(found, ([type(module).__qualname__ for module in self._modules], self._plain))

    @property
    def has_moved(self) -> bool:
        """Whether a mark is another one than when the content was read."""
        return self._current() != self._marks

    def _current(self) -> list[object]:
        marks: list[object] = []
        for module in self._modules:
            for own in (module._parameters, module._buffers):
                for tensor in own.values():
                    if tensor is not None:
                        marks += tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version
            marks += map(id, module._modules.values())
            if merged := module.__dict__.get("merged_adapters"):
                marks += merged
        return marks
