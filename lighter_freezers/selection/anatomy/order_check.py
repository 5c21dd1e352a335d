"""The first real forward pass checks the order in which blocks were taken to run."""

from collections.abc import Sequence

from torch import nn

from lighter_freezers.selection.anatomy.anatomy import Anatomy, Stack
from lighter_freezers.selection.anatomy.block_modules import block_modules

__all__ = ["check_order"]


def check_order(model: nn.Module, anatomy: Anatomy) -> None:
    """Let the first call of each block check that it runs where its anatomy says; later calls cost nothing.

    Args:
        model: What will run.
        anatomy: Of this model, as it was read without running it.

    Raises:
        RuntimeError: In that forward pass, where a block runs before one that was taken to be ahead of it.
    """
    for stack, blocks in zip(anatomy.stacks, block_modules(model, anatomy), strict=True):
        _check_stack(stack, blocks)


def _check_stack(stack: Stack, blocks: Sequence[nn.Module]) -> None:
    seen: list[int] = []

    def look(index: int, block: nn.Module) -> None:
        def hook(*_: object) -> None:
            handle.remove()
            if seen and index < seen[-1]:
                read, ran = stack.block_paths, [stack.block_paths[each] for each in (*seen, index)]
                raise RuntimeError(
                    f"The blocks of '{stack.path}' run in another order than read: read {', '.join(read)}; "
                    f"ran {', '.join(ran)}. What freezes first would be wrong. Say the order in blocks=[...]."
                )
            seen.append(index)

        handle = block.register_forward_pre_hook(hook)

    for index, block in enumerate(blocks):
        look(index, block)
