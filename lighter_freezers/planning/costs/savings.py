"""What freezing saves of the memory of a training step: gradients, optimizer state and activations."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.arguments import checked
from lighter_freezers.planning.costs.memory import (
    OptimizerLike,
    gradient_bytes,
    optimizer_state_bytes,
    parameter_bytes,
)
from lighter_freezers.planning.costs.step_cost import SavedBytes, leaves_no_trace, tensors_in
from lighter_freezers.selection.element_counts import frozen_share, num_elements, num_trainable
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["get_memory_savings_estimate"]

_BYTES_PER_GB = 2**30


@checked
def get_memory_savings_estimate(
    model: nn.Module, optimizer: OptimizerLike = None, batch: object = None
) -> dict[str, float]:
    """Estimate how much less memory a training step needs than if every parameter trained.

    Gradients and optimizer state are exact: they follow from shapes, dtypes and the optimizer's class.
    Activations are measured in two forward passes: with the current flags, and as if every parameter trained.
    The model is not changed, nor are its buffers and torch's random-number generators.

    | call | what is counted |
    |---|---|
    | `get_memory_savings_estimate(model)` | gradients, and the two moments of AdamW |
    | `get_memory_savings_estimate(model, optimizer)` | gradients, and the state of this optimizer |
    | `get_memory_savings_estimate(model, torch.optim.SGD)` | the same for a class with its defaults |
    | `get_memory_savings_estimate(model, batch=batch)` | also what a forward pass keeps for the backward |

    Args:
        model: Any module, frozen as intended. A tied weight counts once. It is called in its current mode,
            and only what it returns counts: a loss that is computed outside is not included.
        optimizer: An optimizer, an optimizer class, or a function from parameters to an optimizer. None means
            AdamW. The state of frozen parameters counts as saved: an optimizer that never stepped has none,
            and `optimizer_state: free` releases it.
        batch: What `model` is called with: a mapping as keyword arguments, a tuple or list as positional
            ones, anything else as the only one. None leaves activations out.

    Returns:
        In GiB (2**30 bytes): `gradient_saved_gb`, `optimizer_saved_gb`, `total_saved_gb`, and with a batch
        `activation_saved_gb`, which is in the total. In bytes: `gradient_saved_bytes`,
        `optimizer_saved_bytes`, `total_saved_bytes`, `activation_saved_bytes`, and what is still needed:
        `gradient_bytes`, `optimizer_bytes`, `activation_bytes`. Elements: `frozen_params`,
        `trainable_params`; `frozen_percentage` is from 0 to 100.

    Raises:
        ValueError: The optimizer keeps one state for all parameters, as LBFGS does.

    Example:
        ```python
        from torch import nn
        from lighter_freezers import get_memory_savings_estimate

        model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 2))
        model[0].requires_grad_(False)
        savings = get_memory_savings_estimate(model)
        print(f"{savings['gradient_saved_bytes']:,} bytes of gradients, {savings['frozen_percentage']:.0f} %")
        ```
    """
    parameters = list(canonical_parameters(model).values())
    total, trainable = num_elements(parameters), num_trainable(parameters)
    if isinstance(optimizer, type) and not issubclass(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an optimizer of torch, or make one. Got {optimizer!r}.")
    needed, in_all = _needed(optimizer, parameters)
    if batch is not None:
        with leaves_no_trace(model), torch.enable_grad():
            needed["activation"] = _kept_bytes(model, {}, batch)
            in_all["activation"] = _kept_bytes(model, _trainable_twins(model), batch)
    saved = {what: in_all[what] - needed[what] for what in needed}
    saved["total"] = sum(saved.values())
    return {
        **{f"{what}_saved_gb": num_bytes / _BYTES_PER_GB for what, num_bytes in saved.items()},
        "frozen_params": total - trainable,
        "trainable_params": trainable,
        "frozen_percentage": 100 * frozen_share(trainable, total),
        **{f"{what}_saved_bytes": num_bytes for what, num_bytes in saved.items()},
        **{f"{what}_bytes": num_bytes for what, num_bytes in needed.items()},
    }


def _needed(optimizer: OptimizerLike, parameters: list[Parameter]) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of gradients and of optimizer state: now, and if everything that can train did."""
    trainable = [parameter for parameter in parameters if _can_train(parameter)]
    needed = {
        "gradient": gradient_bytes(parameters),
        "optimizer": optimizer_state_bytes(optimizer, parameters),
    }
    in_all = {
        "gradient": parameter_bytes(trainable),
        "optimizer": optimizer_state_bytes(optimizer, trainable, also_frozen=True),
    }
    return needed, in_all


def _can_train(parameter: Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _trainable_twins(model: nn.Module) -> dict[str, Parameter]:
    """Name -> a parameter that trains and shares the memory of a frozen one."""
    return {
        name: Parameter(parameter.detach())
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and _can_train(parameter)
    }


def _kept_bytes(model: nn.Module, twins: Mapping[str, Parameter], batch: object) -> int:
    """Bytes that a forward pass keeps while its result is alive."""
    saved = SavedBytes([*model.parameters(), *model.buffers(), *tensors_in(batch)])
    arguments, keywords = _call(batch)
    try:
        with saved.counting():
            result = functional_call(model, dict(twins), arguments, keywords)
            num_bytes = saved.current
    except Exception as error:  # of any model
        raise ValueError(
            f"{type(model).__name__} cannot be called with batch: {type(error).__name__}: {error}. Give a "
            "batch as the model takes it."
        ) from error
    del result
    return num_bytes


def _call(batch: object) -> tuple[tuple[object, ...], dict[str, object]]:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, (tuple, list)) else ((batch,), {})
