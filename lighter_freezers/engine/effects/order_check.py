"""The first real forward pass checks the order in which blocks were taken to run."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine.effects.compiled_graphs import is_compiled
from lighter_freezers.engine.effects.module_hooks import ModuleHook
from lighter_freezers.selection.anatomy import Anatomy
from lighter_freezers.selection.anatomy.block_modules import block_modules

__all__ = ["check_order"]


def check_order(model: nn.Module, anatomy: Anatomy) -> None:
    """Let the first call of each block check that it runs where its anatomy says; later calls cost nothing.

    Args:
        model: What will run. It may be copied and saved meanwhile. What is compiled is not checked.
        anatomy: Of this model, as it was read without running it.

    Raises:
        RuntimeError: In that forward pass, where a block runs before one that was taken to be ahead of it.
    """
    if any(map(is_compiled, model.modules())):
        return
    for stack, blocks in zip(anatomy.stacks, block_modules(model, anatomy), strict=True):
        seen: list[int] = []
        for index, block in enumerate(blocks):
            look = _FirstCall(stack.block_paths, seen, index)
            look.handle = block.register_forward_pre_hook(ModuleHook(look))


class _FirstCall:
    """A hook that goes with the first call of its block. A copy of the model is not checked."""

    def __init__(self, paths: Sequence[str], seen: list[int], index: int) -> None:
        self._paths, self._seen, self._index = paths, seen, index
        self.handle: RemovableHandle | None = None

    def __call__(self, *_: object) -> None:
        if torch.compiler.is_compiling():
            return
        if self.handle is not None:
            self.handle.remove()
        if self._seen and self._index < self._seen[-1]:
            ran = [self._paths[each] for each in (*self._seen, self._index)]
            raise RuntimeError(
                f"The blocks run in another order than read: read {', '.join(self._paths)}; "
                f"ran {', '.join(ran)}. What freezes first would be wrong. Say the order in blocks=[...]."
            )
        self._seen.append(self._index)
