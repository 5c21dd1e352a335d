"""Whether a linear layer may be computed from its weight, without calling the module."""

from typing import TypeGuard

from torch import nn

__all__ = ["is_bare"]


def is_bare(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a plain `nn.Linear` without hooks, LoRA or sharding."""
    if type(module) is not nn.Linear:
        return False
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks)
