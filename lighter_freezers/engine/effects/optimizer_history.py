"""For optimizers whose steps depend on past steps: drops their history, or restores frozen values.

Most optimizers skip a parameter without a gradient. LBFGS does not: it keeps one history of all parameters.
Nor do wrappers such as Lookahead, which pull weights towards a copy of their own, and schedule-free
optimizers, which exchange weights between training and validation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.torch_version import TorchVersion

from lighter_freezers.engine import ledger
from lighter_freezers.engine.trainer_like import ParameterGroup

__all__ = [
    "FrozenValues",
    "drop_shared_history",
    "give_momentum",
    "refuse_dampened_momentum",
    "refuse_dropped_state",
    "with_step_hooks",
]


def drop_shared_history(optimizers: Iterable[Optimizer]) -> None:
    """Let LBFGS begin anew, since its next steps would move what has just frozen."""
    for optimizer in optimizers:
        if "lbfgs" in type(optimizer).__name__.lower() or isinstance(optimizer, torch.optim.LBFGS):
            optimizer.state.clear()


def give_momentum(optimizers: Iterable[Optimizer]) -> None:
    """Let fused SGD step what has no momentum yet beside what has: its kernel takes one kind or the other."""
    for optimizer, group in _fused_momentum(optimizers):
        training = [p for p in group["params"] if p.requires_grad]
        lacking = [p for p in training if optimizer.state.get(p, {}).get("momentum_buffer") is None]
        if not 0 < len(lacking) < len(training):
            continue
        refuse_dampened_momentum([optimizer])
        for parameter in lacking:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def refuse_dampened_momentum(optimizers: Iterable[Optimizer]) -> None:
    """Fail where that momentum of 0 would be damped at its first step, as no other is.

    Raises:
        ValueError: Fused SGD with momentum has a dampening.
    """
    if any(group.get("dampening") for _, group in _fused_momentum(optimizers)):
        raise ValueError(
            "SGD(fused=True) with momentum and dampening cannot step what thaws during the run: torch's "
            "kernel takes no parameter without momentum beside others. Use fused=False, or dampening=0."
        )


def _fused_momentum(optimizers: Iterable[Optimizer]) -> Iterator[tuple[Optimizer, ParameterGroup]]:
    for optimizer in chain.from_iterable((each, *_inside(each)) for each in optimizers):
        for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else ():
            if group.get("fused") and group.get("momentum"):
                yield optimizer, group


def refuse_dropped_state(optimizers: Iterable[Optimizer], optimizer_state: str) -> None:
    """Fail before training where the state of single parameters cannot leave an optimizer.

    Raises:
        RuntimeError: An optimizer wraps another, or is the Adagrad of torch before 2.12, which makes its
            state when it is constructed and never again; the message names it and the way out.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.Adagrad) and TorchVersion(torch.__version__) < "2.12":
            raise RuntimeError(
                f"optimizer_state='{optimizer_state}' drops the state of what freezes, which Adagrad cannot "
                f"make anew before torch 2.12. This is {torch.__version__}. Use optimizer_state='keep'."
            )
        if _inside(optimizer):
            raise RuntimeError(
                f"optimizer_state='{optimizer_state}' drops the state of what freezes, but "
                f"{type(optimizer).__name__} wraps another optimizer and counts on the state of all "
                "parameters. Use optimizer_state='keep', or the inner optimizer alone."
            )


def with_step_hooks(optimizer: Optimizer) -> Optimizer:
    """The optimizer, or the one inside that takes hooks on its steps.

    A wrapper that does not initialise torch's class, such as accelerate's, takes none.
    """
    found = _inside(optimizer)
    is_bare = "_optimizer_step_pre_hooks" not in vars(optimizer)  # torch makes it when it initialises one
    return with_step_hooks(found[0]) if is_bare and found else optimizer


class FrozenValues:
    """Copies of what is held, for optimizers that may move a parameter without a gradient.

    Args:
        optimizers: All optimizers of the run. Where none of them is of this kind, nothing is copied.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = [each for each in optimizers if _is_wrapper(each) or _has_modes(each)]
        self._copies: dict[Parameter, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._copies)

    def follow(self) -> None:
        """Copy what froze, and forget what thawed."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        held = [p for group in groups for p in group["params"] if ledger.is_held(p)]
        self._copies = {p: self._copies[p] if p in self._copies else p.detach().clone() for p in held}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the values back."""
        for parameter, value in self._copies.items():
            parameter.copy_(value)


def _is_wrapper(optimizer: Optimizer) -> bool:
    """Whether it may move weights around the steps of another; a list of optimizers only shares them out."""
    return any(isinstance(value, Optimizer) for value in vars(optimizer).values())


def _inside(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that it wraps, of which it may have a list."""
    found: list[Optimizer] = []
    for value in vars(optimizer).values():
        several = list(value.values()) if isinstance(value, Mapping) else value
        each = several if isinstance(several, (list, tuple)) else [value]
        found += [one for one in each if isinstance(one, Optimizer)]
    return found


def _has_modes(optimizer: Optimizer) -> bool:
    """Whether it has to be told when training begins and ends, as schedule-free optimizers have."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
