"""Removes frozen parameters from optimizer groups: frees their state, and steps only process what trains.

The groups themselves stay, so LR schedulers and learning rates are unaffected. A parameter that was removed
returns to its old place. Checkpoints do not depend on it: while one is saved or loaded, groups have all their
parameters, and removed parameters have no state, as if they had never trained.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["LeanGroups"]

_PER_PARAMETER = ("params", "param_names")


class LeanGroups:
    """The groups of some optimizers, and the parameters removed from them.

    Args:
        optimizers: With all their parameters.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._groups = [_LeanOptimizer(optimizer) for optimizer in optimizers]

    def leave_out(self, parameters: Iterable[Parameter]) -> None:
        """Remove these from all groups and free their state, and put all others back.

        Args:
            parameters: All that the groups shall lack from now on.
        """
        away = {id(parameter) for parameter in parameters}
        for groups in self._groups:
            groups.leave_out(away)

    def replace(self, successors: Mapping[int, Parameter]) -> None:
        """Substitute parameters among those that were removed.

        Args:
            successors: Id of an old parameter -> the new one.
        """
        for groups in self._groups:
            groups.replace(successors)

    def release(self) -> None:
        """Put everything back, and stop managing the optimizers."""
        for groups in self._groups:
            groups.release()


class _LeanOptimizer:
    """The groups of one optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._away: set[int] = set()
        self._full: list[dict[str, list[object]]] = []  # the complete groups, while parameters are removed
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
        """Put all parameters back at their old places."""
        for group, full in zip(self._optimizer.param_groups, self._full, strict=False):
            for key, members in full.items():
                group[key] = members
        self._full = []

    def _empty(self) -> None:
        """Remove parameters from the groups and their state from the optimizer."""
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
