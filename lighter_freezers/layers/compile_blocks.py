"""`torch.compile`, block by block: freezing or thawing a layer then needs no new graph of the whole model."""

import logging
from collections.abc import Callable

import torch
from torch import nn

from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.engine.effects.call_detour import Call, CallDetour
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.anatomy.block_modules import block_modules

__all__ = ["compile_blocks"]

_DYNAMO = "torch._dynamo.convert_frame"  # the logger of torch's compiler


@checked
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

    Blocks of transformers get no KV cache while gradients are on and it is empty: they would read it under
    their own number, so that each layer needed a graph of its own. Where torch stops compiling for another
    reason, a warning gives it.

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
    blocks = [block for stack in block_modules(model, anatomy_of(model)) for block in stack]
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no repeated blocks. Compile it as a whole: torch.compile(model)."
        )
    for block in blocks:
        block.compile(backend=backend, mode=mode, fullgraph=fullgraph, dynamic=dynamic)
        CallDetour(block, _without_history)
    dynamo = logging.getLogger(_DYNAMO)
    if not any(isinstance(handler, _GivenUp) for handler in dynamo.handlers):
        dynamo.addHandler(_GivenUp(logging.WARNING))
    return model


def _without_history(compiled: Call, arguments: tuple[object, ...], keywords: dict[str, object]) -> object:
    """Call a block without a KV cache that nothing reads."""
    if torch.is_grad_enabled() and any(map(_is_empty_history, (*arguments, *keywords.values()))):
        arguments = tuple(None if _is_empty_history(each) else each for each in arguments)
        keywords = {key: None if _is_empty_history(each) else each for key, each in keywords.items()}
        keywords = {key: False if key == "use_cache" else each for key, each in keywords.items()}
    return compiled(*arguments, **keywords)


def _is_empty_history(value: object) -> bool:
    # by name: a cache of fixed size would have to read its length from the device
    if type(value).__name__ not in ("DynamicCache", "EncoderDecoderCache"):
        return False
    length: object = value.get_seq_length()  # type: ignore[attr-defined] # a class of transformers
    return length == 0


class _GivenUp(logging.Handler):
    """Repeats in plain words what torch logs when it compiles a function no more."""

    def emit(self, record: logging.LogRecord) -> None:
        if "hit config." in str(record.msg) and isinstance(record.args, tuple):
            limit, number, function, reason, *_ = record.args
            log.warning(
                "torch.compile gives up on %s after %s graphs (torch._dynamo.config.%s): other variants run "
                "uncompiled. The last reason for another graph: %s",
                *(function, number, limit, reason),
            )
