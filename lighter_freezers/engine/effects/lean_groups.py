"""Optimizer groups without what is frozen: its state is freed, and a step costs what trains.

Groups stay where they are, so LR schedulers and learning rates go on with them. What leaves a group comes
back to its old place. A checkpoint never sees any of it: while it is saved or loaded, groups have all their
parameters, and parameters that are away have no state, as if they had never trained.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["LeanGroups", "refuse_lean_groups"]

_PER_PARAMETER = ("params", "param_names")


def refuse_lean_groups(strategy: Any, optimizers: Iterable[Optimizer]) -> None:
    """Fail before training where parameters cannot leave an optimizer.

    Raises:
        RuntimeError: The strategy or an optimizer counts on a fixed set of parameters.
    """
    name = type(strategy).__name__
    if not {"SingleDeviceStrategy", "DDPStrategy"} & {base.__name__ for base in type(strategy).__mro__}:
        raise RuntimeError(
            f"optimizer_state='free' takes what is frozen out of the optimizer, and {name} does not follow "
            "that when it saves a checkpoint. Use 'reset', one device or the strategy 'ddp'."
        )
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise RuntimeError(
            "optimizer_state='free' takes frozen parameters out of the optimizer, but LBFGS remembers all of "
            "them together. Use another optimizer, or optimizer_state='keep'."
        )


class LeanGroups:
    """The groups of some optimizers, and who is away from them.

    Args:
        optimizers: With all their parameters.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._groups = [_LeanOptimizer(optimizer) for optimizer in optimizers]

    def leave_out(self, parameters: Iterable[Parameter]) -> None:
        """Leave these out of all groups and free their state, and have all others back.

        Args:
            parameters: All that is to be away from now on.
        """
        away = {id(parameter) for parameter in parameters}
        for groups in self._groups:
            groups.leave_out(away)

    def replace(self, successors: Mapping[int, Parameter]) -> None:
        """Put other parameters in the place of those that are away.

        Args:
            successors: Id of an old parameter -> the new one.
        """
        for groups in self._groups:
            groups.replace(successors)

    def release(self) -> None:
        """Have everything back, and leave the optimizers alone from now on."""
        for groups in self._groups:
            groups.release()


class _LeanOptimizer:
    """The groups of one optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._away: set[int] = set()
        self._full: list[dict[str, list[Any]]] = []  # while somebody is away: what belongs into each group
        self._hooks: list[RemovableHandle] = [
            optimizer.register_state_dict_pre_hook(lambda _: self._fill()),
            optimizer.register_state_dict_post_hook(lambda *_: self._empty()),
            optimizer.register_load_state_dict_pre_hook(lambda *_: self._fill()),
            optimizer.register_load_state_dict_post_hook(lambda _: self._empty()),
        ]

    def leave_out(self, away: set[int]) -> None:
        if away == self._away:
            return
        self._fill()
        self._away = away
        self._empty()

    def replace(self, successors: Mapping[int, Parameter]) -> None:
        for full in self._full:
            full["params"] = [successors.get(id(parameter), parameter) for parameter in full["params"]]

    def release(self) -> None:
        self._fill()
        for hook in self._hooks:
            hook.remove()
        self._away, self._hooks = set(), []

    def _fill(self) -> None:
        """Have everybody back, at the old places."""
        for group, full in zip(self._optimizer.param_groups, self._full, strict=False):
            for key, members in full.items():
                group[key] = members
        self._full = []

    def _empty(self) -> None:
        """Let them go, with all that the optimizer remembers of them."""
        if not self._away:
            return
        for group in self._optimizer.param_groups:
            keys = [key for key in _PER_PARAMETER if key in group]
            stay = [index for index, p in enumerate(group["params"]) if id(p) not in self._away]
            self._full.append({key: list(group[key]) for key in keys})
            for parameter in group["params"]:
                if id(parameter) in self._away:
                    self._optimizer.state.pop(parameter, None)
            for key in keys:
                group[key] = [group[key][index] for index in stay]
