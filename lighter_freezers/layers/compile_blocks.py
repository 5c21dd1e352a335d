"""`torch.compile`, block by block: freezing or thawing a layer then needs no new graph of the whole model."""

from collections.abc import Callable

from torch import nn

from lighter_freezers import arguments
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.anatomy.block_modules import block_modules

__all__ = ["compile_blocks"]


def compile_blocks(
    model: nn.Module,
    *,
    backend: str | Callable[..., object] = "inductor",
    mode: str | None = None,
    fullgraph: bool = False,
    dynamic: bool | None = None,
) -> nn.Module:
    """Compile each block of a model in place; the rest runs as it is.

    A graph is valid for one set of frozen parameters. A model that is compiled as a whole needs a new graph,
    and seconds to minutes, for each state of a freezing schedule; after 8 of them torch runs it uncompiled
    for good. Blocks are alike: one that trains, one that is frozen, and one that only passes the gradient on
    need three graphs, whatever the depth and the schedule. Modules outside the blocks are not compiled.

    Args:
        model: A model with repeated blocks, found by structure. Names of parameters and of modules stay, and
            so do checkpoints.
        backend: As for `torch.compile`, like the other options.
        mode: None for the default, "reduce-overhead" or "max-autotune".
        fullgraph: Whether a block that needs more than one graph is an error.
        dynamic: Whether sizes may change without a new graph. None: from the second size on.

    Returns:
        The same model. Nothing is compiled before it first runs.

    Raises:
        TypeError: An option has the wrong type.
        ValueError: The model has no repeated blocks.

    Example:
        ```yaml
        network:
          _target_: lighter_freezers.compile_blocks
          model: {_target_: lighter_freezers.GPT, config: {vocab_size: 65, block_size: 64}}
        ```
    """
    if not isinstance(backend, str) and not callable(backend):
        raise TypeError(f"backend is the name of a backend or a function. Got {backend!r}.")
    arguments.flag("fullgraph", fullgraph)
    blocks = [block for stack in block_modules(model, anatomy_of(model)) for block in stack]
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no repeated blocks. Compile it as a whole: torch.compile(model)."
        )
    for block in blocks:
        block.compile(backend=backend, mode=mode, fullgraph=fullgraph, dynamic=dynamic)
    return model
