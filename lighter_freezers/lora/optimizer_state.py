"""Carries the optimizer's state of LoRA factors through a change of their rank.

Gradients are covectors: where the factors become A' = T A and B' = B P, their gradients become P^T G_A and
G_B T^T, and so do running means of them. Running means of their squares have no exact image; they follow the
projection-aware rule of LDAdam (arXiv 2410.16103).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine.effects.optimizer_groups import forget_state
from lighter_freezers.engine.effects.parameter_swap import options_of
from lighter_freezers.engine.trainer_like import ParameterGroup, SavedState
from lighter_freezers.lora.sites import LoraSite

__all__ = ["NewComponents", "Recombination", "carry_state"]

_MEANS = frozenset({"exp_avg", "momentum_buffer"})  # linear in the gradient
_SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})  # quadratic in it


@dataclass(frozen=True)
class Recombination:
    """How the components of a factor became what they are.

    Attributes:
        axis: Where the components are counted: 0 in A, 1 in B.
        mix: Old gradients to those of the components that were kept, (k, r): P^T for A, T for B. None where
            these are the old components, unchanged.
        num_kept: k.
        num_new: How many components came after them.
    """

    axis: int
    mix: Tensor | None
    num_kept: int
    num_new: int


def carry_state(parameter: Parameter, change: Recombination, optimizer: Optimizer) -> bool:
    """Give the state of a parameter that has just been reshaped its new shape.

    The second moments of new components are the mean of the others until `NewComponents` knows better.

    Args:
        parameter: The parameter with its new shape.
        change: How it became that.
        optimizer: Its state for the parameter still has the old shape.

    Returns:
        Whether it could be carried. State of an unknown kind is dropped, and the parameter starts without
        state.
    """
    state = optimizer.state.get(parameter)
    options = options_of(parameter, optimizer)
    if not state or options is None:
        return True
    if not change.num_kept:
        forget_state([parameter], [optimizer])
        return True
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim()}
    if not all(_is_known(key, value, parameter, change) for key, value in tensors.items()):
        forget_state([parameter], [optimizer])
        return False
    corrections = _bias_corrections(state, options)
    for key, value in tensors.items():
        if key in _MEANS:
            carried = _carried_mean(value, change)
        else:
            carried = _carried_squares(value, tensors.get("exp_avg"), corrections, change)
        state[key] = carried.reshape(parameter.shape).contiguous()
    return True


class NewComponents:
    """New components of grown factors whose second moments wait for a first gradient.

    Adam counts steps per parameter. With zeros there, a new component of a parameter with many steps would
    make a first step of up to 3.2 learning rates. So its first squared gradient stands for all that it has
    not seen.
    """

    def __init__(self) -> None:
        self._waiting: dict[
            str, dict[str, int]
        ] = {}  # name of a site -> factor -> components that are not new
        self._sites: dict[str, LoraSite] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether `start` has to be called before the next optimizer step."""
        return bool(self._waiting)

    def expect(self, site: LoraSite, num_kept: int) -> None:
        """After a change of rank: all components from `num_kept` on are new, or still are."""
        num_kept = min([num_kept, *self._waiting.pop(site.name, {}).values()])
        if 0 < num_kept < site.factors.rank:  # an adapter without old components has no state at all
            self._waiting[site.name] = {"A": num_kept, "B": num_kept}
            self._sites[site.name] = site

    def start(self, optimizer: Optimizer) -> None:
        """Set the moments of components with a gradient; call it between backward pass and optimizer step.

        Args:
            optimizer: The one that steps now.
        """
        for name, waiting in list(self._waiting.items()):
            parameters = self._sites[name].factors.parameters
            for axis, (factor, parameter) in enumerate(zip("AB", parameters, strict=True)):
                if factor in waiting and _start(parameter, axis, waiting[factor], optimizer):
                    del waiting[factor]
            if not waiting:
                del self._waiting[name]

    def state(self) -> dict[str, dict[str, int]]:
        """The waiting components, in plain types."""
        return {name: dict(waiting) for name, waiting in self._waiting.items()}

    def remember(self, state: Mapping[str, Mapping[str, int]], sites: Mapping[str, LoraSite]) -> None:
        """Restore what `state` returned; sites that no longer exist are dropped."""
        self._waiting = {name: dict(waiting) for name, waiting in state.items() if name in sites}
        self._sites = {name: sites[name] for name in self._waiting}


def _start(parameter: Parameter, axis: int, num_kept: int, optimizer: Optimizer) -> bool:
    """Set the second moments of new components; returns whether they need no more waiting."""
    options = options_of(parameter, optimizer)
    if options is None or parameter.grad is None:  # another optimizer has it, or it is frozen now
        return False
    state = optimizer.state.get(parameter, {})
    if "exp_avg_sq" not in state:
        return True
    beta = options["betas"][1]
    # so that beta v + (1 - beta) g^2, which the step is about to make of v, is (1 - beta^t) g^2
    factor = ((1 - beta ** (state["step"] + 1)) - (1 - beta)) / beta
    moments = _components_first(state["exp_avg_sq"], axis).clone()  # (r, rest)
    gradient = _components_first(parameter.grad, axis)[num_kept:].to(moments)
    first = factor * gradient.square()
    is_usable = (first > 0) & first.isfinite()  # rows of A have none while their columns of B are zero
    others = moments[:num_kept].mean(dim=0, keepdim=True)
    moments[num_kept:] = torch.where(is_usable, first, others)
    state["exp_avg_sq"].copy_(_components_back(moments, axis, parameter))
    return True


def _is_known(key: str, value: Tensor, parameter: Parameter, change: Recombination) -> bool:
    """Whether a state is a running mean with the shape that the parameter had."""
    shape = list(parameter.shape)
    shape[change.axis] = change.num_kept if change.mix is None else change.mix.shape[1]
    return key in _MEANS | _SQUARES and list(value.shape) == shape


def _bias_corrections(state: SavedState, options: ParameterGroup) -> tuple[float, float]:
    """1 - beta^t of Adam's two means; 1 for optimizers without."""
    step = float(state.get("step", 0.0))
    if "betas" not in options or not step:
        return 1.0, 1.0
    first, second = options["betas"]
    return 1 - float(first) ** step, 1 - float(second) ** step


def _components_first(x: Tensor, axis: int) -> Tensor:
    """(r, rest)."""
    return x.movedim(axis, 0).flatten(1)


def _components_back(rows: Tensor, axis: int, like: Tensor) -> Tensor:
    """The inverse, for any number of components: the other dimensions are those of `like`."""
    others = [size for dimension, size in enumerate(like.shape) if dimension != axis]
    return rows.reshape(len(rows), *others).movedim(0, axis)


def _working(mix: Tensor, like: Tensor) -> Tensor:
    """In the precision of what it mixes, float32 at least."""
    return mix.to(like.device, torch.promote_types(like.dtype, torch.float32))


def _carried_mean(value: Tensor, change: Recombination) -> Tensor:
    rows = _components_first(value, change.axis)  # (r, rest)
    if change.mix is not None:
        mix = _working(change.mix, value)
        rows = (mix @ rows.to(mix)).to(value)  # (k, rest)
    rows = torch.cat([rows, rows.new_zeros(change.num_new, rows.shape[1])])
    return _components_back(rows, change.axis, value)


def _carried_squares(
    value: Tensor, mean: Tensor | None, corrections: tuple[float, float], change: Recombination
) -> Tensor:
    rows = _components_first(value, change.axis)  # (r, rest)
    if change.mix is not None:
        mix = _working(change.mix, value)
        squares = rows.to(mix) / corrections[1]
        means = squares.new_zeros(squares.shape)
        if mean is not None:
            means = _components_first(mean, change.axis).to(mix) / corrections[0]
        variances = (squares - means.square()).clamp_min(0)
        rows = (corrections[1] * (mix.square() @ variances + (mix @ means).square())).to(value)  # (k, rest)
    rows = torch.cat([rows, rows.mean(dim=0, keepdim=True).expand(change.num_new, -1)])
    return _components_back(rows, change.axis, value)
