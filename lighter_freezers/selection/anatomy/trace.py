"""In which order the modules of a model run: one forward pass, without gradients, that leaves no trace."""

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from lighter_freezers._log import log
from lighter_freezers.selection.anatomy.tree import Node

__all__ = ["calls_of_example", "first_calls"]

# of examples: model -> its shape then, and what was called when
_CALLS: WeakKeyDictionary[nn.Module, tuple[int, dict[str, int] | None]] = WeakKeyDictionary()


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


def calls_of_example(model: nn.Module, root: Node) -> dict[str, int] | None:
    """The same for the `example_input_array` of a LightningModule; None where it has none that runs.

    It runs once for each shape of the model. What is compiled, sharded or not yet built is left alone.
    """
    example = getattr(model, "example_input_array", None)
    if example is None:
        return None
    shape, calls = _CALLS.get(model, (None, None))
    if shape != root.shape:
        calls = _calls_if_it_runs(model, root, example)
        _CALLS[model] = (root.shape, calls)
    return calls


def _calls_if_it_runs(model: nn.Module, root: Node, example: object) -> dict[str, int] | None:
    parameters = list(model.parameters())
    is_elsewhere = any(is_lazy(p) or p.is_meta or hasattr(p, "device_mesh") for p in parameters)
    if is_elsewhere or any(m._compiled_call_impl or hasattr(m, "_orig_mod") for m in model.modules()):
        return None
    device = parameters[0].device if parameters else torch.device("cpu")
    try:
        return first_calls(model, root, tree_map_only(torch.Tensor, lambda each: each.to(device), example))
    except ValueError as error:
        log.info("The order of the layers is read from the source: %s", error)
        return None


def _call(model: nn.Module, example: object) -> None:
    if isinstance(example, Mapping):
        model(**example)
    elif isinstance(example, tuple):
        model(*example)
    else:
        model(example)
