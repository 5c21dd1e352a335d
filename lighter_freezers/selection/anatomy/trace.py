"""In which order the modules of a model run: one forward pass, without gradients, that leaves no trace."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from lighter_freezers.selection.anatomy.tree import Node

__all__ = ["first_calls"]


def first_calls(model: nn.Module, root: Node, example: object) -> dict[str, int]:
    """Path of each module that a forward pass calls to its place in the order of first calls.

    The model is in eval mode meanwhile; random states and modes are as before afterwards.

    Args:
        model: What to call.
        root: Its tree.
        example: A batch, or a tuple or mapping of arguments.
    """
    times: dict[str, int] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            times.setdefault(path, len(times))

        return hook

    handles = [node.module.register_forward_pre_hook(note(node.path)) for node in root.walk()]
    modes = {module: module.training for module in model.modules()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            _call(model.eval(), example)
    except Exception as error:  # of any model
        raise ValueError(
            f"{type(model).__name__} cannot be called with example: {type(error).__name__}: {error}. Give a "
            "batch, a tuple of its arguments, or a mapping of them."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return times


def _call(model: nn.Module, example: object) -> None:
    if isinstance(example, Mapping):
        model(**example)
    elif isinstance(example, tuple):
        model(*example)
    else:
        model(example)
