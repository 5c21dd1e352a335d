"""The first real forward pass checks the order in which blocks were taken to run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import commonprefix

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine.effects.compiled_graphs import is_compiled
from lighter_freezers.engine.effects.module_hooks import ModuleHook
from lighter_freezers.selection.anatomy import Anatomy, Stack
from lighter_freezers.selection.anatomy.block_modules import block_modules
from lighter_freezers.selection.names import walk

__all__ = ["check_order"]

_LISTS = (nn.ModuleList, nn.ModuleDict)


def check_order(model: nn.Module, anatomy: Anatomy) -> None:
    """Let the first call of each block check that it runs where its anatomy says; later calls cost nothing.

    Blocks of several stacks are compared while the module around all of them runs, so that a decoder may be
    called alone; those of towers that run side by side are not, nor those that `training_step` calls itself.

    Args:
        model: What will run. It may be copied and saved meanwhile. What is compiled is not checked.
        anatomy: Of this model, as it was read without running it.

    Raises:
        RuntimeError: In that forward pass, where a block runs before one that was taken to be ahead of it.
    """
    if any(map(is_compiled, model.modules())):
        return
    found = dict(zip(anatomy.stacks, block_modules(model, anatomy), strict=True))
    for stack, blocks in found.items():
        _watch(blocks, _Line(stack.block_paths))
    for stacks in anatomy.towers.values():
        if len(stacks) > 1:
            _watch_together(model, stacks, [block for stack in stacks for block in found[stack]])


def _watch_together(model: nn.Module, stacks: Sequence[Stack], blocks: Sequence[nn.Module]) -> None:
    """Compare the blocks of several stacks from the first call of what holds them all to its end."""
    line = _Line([path for stack in stacks for path in stack.block_paths], is_open=False)
    named = dict(walk(model))
    shared = commonprefix([path.split(".")[:-1] for path in line.paths])
    while shared and isinstance(named.get(".".join(shared)), _LISTS):
        shared = shared[:-1]  # a list is not called
    around = named.get(".".join(shared), model)
    if around is model and hasattr(model, "training_step"):  # which a Trainer calls in place of the module
        return
    line.handles = [
        around.register_forward_pre_hook(ModuleHook(line.begin)),
        around.register_forward_hook(ModuleHook(line.end), always_call=True),
    ]
    _watch(blocks, line)


def _watch(blocks: Sequence[nn.Module], line: "_Line") -> None:
    for index, block in enumerate(blocks):
        look = _FirstCall(line, index)
        look.handle = block.register_forward_pre_hook(ModuleHook(look))
        line.handles.append(look.handle)


@dataclass
class _Line:
    """Blocks that were taken to run one after the other, and those that have run."""

    paths: Sequence[str]
    is_open: bool = True
    seen: list[int] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)

    def begin(self, *_: object) -> None:
        self.is_open = True

    def end(self, *_: object) -> None:
        self.is_open = False
        for handle in self.handles:
            handle.remove()


class _FirstCall:
    """A hook that goes with the first call of its block. A copy of the model is not checked."""

    def __init__(self, line: _Line, index: int) -> None:
        self._line, self._index = line, index
        self.handle: RemovableHandle | None = None

    def __call__(self, *_: object) -> None:
        line = self._line
        if torch.compiler.is_compiling() or not line.is_open:
            return
        if self.handle is not None:
            self.handle.remove()
        if line.seen and self._index < line.seen[-1]:
            ran = [line.paths[each] for each in (*line.seen, self._index)]
            raise RuntimeError(
                f"The blocks run in another order than read: read {', '.join(line.paths)}; "
                f"ran {', '.join(ran)}. What freezes first would be wrong. Say the order in blocks=[...]."
            )
        line.seen.append(self._index)
