"""Carries the optimizer's state of LoRA factors through a change of their rank.

Gradients are covectors: where the factors become A' = T A and B' = B P, their gradients become P^T G_A and
G_B T^T, and so do running means of them. Running means of their squares have no exact image; they follow the
projection-aware rule of LDAdam (arXiv 2410.16103).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine.effects.optimizer_groups import forget_state
from lighter_freezers.engine.effects.parameter_swap import groups_by_id
from lighter_freezers.engine.trainer_like import ParameterGroup, SavedState
from lighter_freezers.lora.sites import LoraSite

__all__ = ["NewComponents", "Recombination", "carry_states"]

_MEANS = frozenset({"exp_avg", "momentum_buffer"})  # linear in the gradient
_SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})  # quadratic in it
_KNOWN = _MEANS | _SQUARES


@dataclass(frozen=True)
class Recombination:
    """How the components of a factor became what they are, in each layer of a stack.

    Attributes:
        axis: Where the components are counted: 0 in A, 1 in B.
        mix: Old gradients to those of the components that were kept, (g, k, r): P^T for A, T for B. None
            where these are the old components, unchanged.
        num_kept: k.
        num_new: How many components came after them.
    """

    axis: int
    mix: Tensor | None
    num_kept: int
    num_new: int


def carry_states(
    parameters: Sequence[Parameter],
    change: Recombination,
    optimizer: Optimizer,
    groups: Mapping[int, ParameterGroup],
) -> bool:
    """Give the state of parameters that have just been reshaped its new shape.

    The second moments of new components are the mean of the others until `NewComponents` knows better.

    Args:
        parameters: One of each layer in a stack, of equal shapes, with their new shape.
        change: How they became that.
        optimizer: Its state for the parameters still has the old shape.
        groups: Id of a parameter -> its group in this optimizer.

    Returns:
        Whether all could be carried. State of an unknown kind is dropped, and a parameter starts without
        state.
    """
    stacks: dict[tuple[object, ...], dict[int, dict[str, Tensor]]] = {}
    are_carried = True
    for index, parameter in enumerate(parameters):
        state = optimizer.state.get(parameter)
        if not state or id(parameter) not in groups:
            continue
        tensors = _tensors_of(state)
        if not tensors:  # a step count alone has no shape
            continue
        is_known = all(_is_known(key, value, parameter, change) for key, value in tensors.items())
        if not (change.num_kept and is_known):
            forget_state([parameter], [optimizer])
            are_carried &= is_known
        elif change.mix is None:
            state.update({key: _grown(key, value, change) for key, value in tensors.items()})
        else:
            kinds = tuple((key, value.dtype, value.device) for key, value in tensors.items())
            stacks.setdefault(kinds, {})[index] = state
    for states in stacks.values():
        assert change.mix is not None
        mix = change.mix if len(states) == len(change.mix) else change.mix[list(states)]
        options = [groups[id(parameters[index])] for index in states]
        _mix_states(list(states.values()), options, mix, change)
    return are_carried


def _grown(key: str, value: Tensor, change: Recombination) -> Tensor:
    """A state with the old components as they are, and new ones."""
    shape = list(value.shape)
    shape[change.axis] = change.num_new
    if key in _MEANS:
        return torch.cat([value, value.new_zeros(shape)], dim=change.axis)
    mean = value.mean(dim=change.axis, keepdim=True)
    return torch.cat([value, mean.expand(shape)], dim=change.axis)


def _mix_states(
    states: Sequence[dict[str, Tensor]],
    options: Sequence[ParameterGroup],
    mix: Tensor,
    change: Recombination,
) -> None:
    """Carry states with the same keys through a mix of their components, (g, k, r)."""
    tensors = [_tensors_of(state) for state in states]
    stacked = {  # (g, r, rest)
        key: torch.stack([each[key] for each in tensors]).movedim(change.axis + 1, 1).flatten(2)
        for key in tensors[0]
    }
    corrections = _bias_corrections(states, options, mix)
    shape = next(iter(tensors[0].values())).shape
    others = [size for dimension, size in enumerate(shape) if dimension != change.axis]
    kept = Recombination(change.axis, None, change.num_kept, change.num_new)
    for key, rows in stacked.items():
        working = _working(mix, rows)
        if key in _MEANS:
            mixed = working @ rows.to(working)
        else:
            mixed = _mixed_squares(rows, stacked.get("exp_avg"), corrections, working)
        mixed = mixed.to(rows).reshape(*mixed.shape[:2], *others).movedim(1, change.axis + 1)
        for state, value in zip(states, mixed.unbind(), strict=True):
            state[key] = _grown(key, value, kept).contiguous()  # with memory of its own


class NewComponents:
    """New components of grown factors whose second moments wait for a first gradient.

    Adam counts steps per parameter. With zeros there, a new component of a parameter with many steps would
    make a first step of up to 3.2 learning rates. So its first squared gradient stands for all that it has
    not seen.
    """

    def __init__(self) -> None:
        # name of a site -> factor -> components that are not new
        self._waiting: dict[str, dict[str, int]] = {}
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
        [groups] = groups_by_id([optimizer]).values()
        for name, waiting in list(self._waiting.items()):
            parameters = self._sites[name].factors.parameters
            for axis, (factor, parameter) in enumerate(zip("AB", parameters, strict=True)):
                options = groups.get(id(parameter))
                if factor in waiting and _start(parameter, axis, waiting[factor], optimizer, options):
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


def _start(
    parameter: Parameter, axis: int, num_kept: int, optimizer: Optimizer, options: ParameterGroup | None
) -> bool:
    """Set the second moments of new components; returns whether they need no more waiting."""
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


def _tensors_of(state: SavedState) -> dict[str, Tensor]:
    """What an optimizer keeps for the elements of a parameter."""
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim()}


def _is_known(key: str, value: Tensor, parameter: Parameter, change: Recombination) -> bool:
    """Whether a state is a running mean with the shape that the parameter had."""
    shape = list(parameter.shape)
    shape[change.axis] = change.num_kept if change.mix is None else change.mix.shape[-1]
    return key in _KNOWN and list(value.shape) == shape


def _bias_corrections(
    states: Sequence[SavedState], options: Sequence[ParameterGroup], like: Tensor
) -> tuple[Tensor, Tensor]:
    """1 - beta^t of Adam's two means, (g, 1, 1) each; 1 for optimizers without."""
    pairs = []
    for state, group in zip(states, options, strict=True):
        step = float(state.get("step", 0.0))
        has_means = "betas" in group and step
        pairs.append([1 - float(beta) ** step for beta in group["betas"]] if has_means else [1.0, 1.0])
    first, second = like.new_tensor(pairs)[..., None, None].unbind(1)
    return first, second


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


def _mixed_squares(
    rows: Tensor, means: Tensor | None, corrections: tuple[Tensor, Tensor], mix: Tensor
) -> Tensor:
    """(g, r, rest) to (g, k, rest)."""
    first, second = (correction.to(mix) for correction in corrections)
    squares = rows.to(mix) / second
    means = torch.zeros_like(squares) if means is None else means.to(mix) / first
    variances = (squares - means.square()).clamp_min(0)
    return second * (mix.square() @ variances + (mix @ means).square())
