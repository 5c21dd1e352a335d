"""Notices any change of the weights of some modules, also one that leaves torch's version counters alone."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lighter_freezers.prefix.keys import digest_of

__all__ = ["WeightWatch"]

_PLAIN = (bool, int, float, str)


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
        self._tensors: list[Mapping[str, Tensor | None]] = []  # those that modules hold, by their names there
        self._attributes: list[dict[str, object]] = []  # of each module
        self._settings: list[tuple[dict[str, object], str]] = []  # the plain ones of these
        self._children: list[dict[str, nn.Module | None]] = []
        self._merged: list[list[str]] = []
        self._has_versions = True
        self._marks: list[object] = []

    def digest(self) -> str:
        """A name for the content of the weights, which is read."""
        # found anew each time: a merge or a load may have replaced modules
        modules = [module for block in self._blocks for module in block.modules()]
        loose = [_loose_tensors(module) for module in modules]
        owned = (own for module in modules for own in (module._parameters, module._buffers))
        self._tensors = [own for own in (*owned, *loose) if own]
        self._attributes = [vars(module) for module in modules]
        self._settings = [
            (own, name) for own in self._attributes for name in own if isinstance(own[name], _PLAIN)
        ]
        self._children = [module._modules for module in modules if module._modules]
        self._merged = [
            vars(module)["merged_adapters"] for module in modules if "merged_adapters" in vars(module)
        ]
        found: list[Tensor] = []
        for block in self._blocks:
            found += [*block.parameters(), *block.buffers()]
        found += [tensor for own in loose for tensor in own.values()]
        self._has_versions = not any(tensor.is_inference() for tensor in found)
        self._marks = self._current()
        return digest_of(found, ([type(module).__qualname__ for module in modules], self._plain))

    @property
    def settings(self) -> list[object]:
        """The plain attributes of all modules, such as `training` or a scale that other code may set."""
        return [own.get(name) for own, name in self._settings] + [len(own) for own in self._attributes]

    @property
    def has_moved(self) -> bool:
        """Whether a mark is another one than when the content was read."""
        return self._current() != self._marks

    def _current(self) -> list[object]:
        tensors = [tensor for own in self._tensors for tensor in own.values() if tensor is not None]
        marks: list[object] = [tensor.data_ptr() for tensor in tensors]
        if self._has_versions:
            marks += [tensor._version for tensor in tensors]
        for children in self._children:
            marks += map(id, children.values())
        for merged in self._merged:
            marks += merged
        return marks


def _loose_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that are neither parameters nor buffers of a module."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
