"""Notices any change of the weights of some modules, also one that leaves torch's version counters alone."""

from collections.abc import Sequence

from torch import Tensor, nn

from lighter_freezers.prefix.keys import digest_of

__all__ = ["WeightWatch"]


class WeightWatch:
    """The parameters and buffers of a prefix.

    Version counters and storage pointers are free to compare, but `p.data += x` and PEFT's `merge_adapter`
    change neither: only the content tells then.

    Args:
        blocks: The modules.
        plain: What else names this version of them.
    """

    def __init__(self, blocks: Sequence[nn.Module], plain: object) -> None:
        self._blocks = blocks
        self._plain = plain
        self._marks: list[tuple[int, int]] = []
        self._digest = ""

    def digest(self, *, is_thorough: bool) -> str:
        """A name for the content of the weights.

        Args:
            is_thorough: Read the content even if no counter or pointer has moved.
        """
        tensors = self._tensors()
        marks = [(tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if is_thorough or marks != self._marks:
            self._marks = marks
            classes = [type(module).__qualname__ for block in self._blocks for module in block.modules()]
            self._digest = digest_of(tensors, (classes, self._plain))
        return self._digest

    def _tensors(self) -> list[Tensor]:
        # found anew each time: a merge or a load may have replaced modules and parameters
        found: list[Tensor] = []
        for block in self._blocks:
            found += [*block.parameters(), *block.buffers()]
        return found
