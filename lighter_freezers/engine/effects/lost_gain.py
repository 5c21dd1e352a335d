"""How much of a step's work a frozen prefix saves only if no gradient has to flow through it."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from lighter_freezers.engine.effects.module_hooks import ModuleHook
from lighter_freezers.selection.anatomy import Anatomy, Stack

__all__ = ["WeightUses", "frozen_from", "frozen_prefix", "lost_share"]


def frozen_prefix(stack: Stack, parameters: Mapping[str, Parameter]) -> int:
    """The number of leading blocks of a stack in which nothing trains.

    Args:
        stack: The blocks.
        parameters: Canonical name to parameter.
    """
    for number, block in enumerate(stack.blocks):
        if _trains(block, parameters):
            return number
    return len(stack.blocks)


def lost_share(
    anatomy: Anatomy,
    stack: Stack,
    parameters: Mapping[str, Parameter],
    *,
    is_checkpointed: bool = False,
    uses: Mapping[int, float] | None = None,
) -> float:
    """The share of a step's products that is spent on gradients for what is below a frozen prefix.

    Counted by the elements of weight matrices W, times the positions at which they are used: a layer that
    trains needs three products with W (output, gradient of its input, gradient of W), a frozen layer that a
    gradient flows through needs two, and one without a gradient needs one. Checkpointing computes the output
    of a block again if a gradient flows through it.

    Args:
        anatomy: Of the model.
        stack: The one with the frozen prefix; frozen stacks behind it belong to that prefix.
        parameters: Canonical name to parameter, of the whole model.
        is_checkpointed: Whether blocks are checkpointed.
        uses: Id of a weight to its positions, as `WeightUses` counts them. None: all layers see the same
            positions, as in a transformer; nothing below the blocks counts then.

    Returns:
        From 0 to 1.
    """

    def elements(names: Iterable[str]) -> float:
        matrices = [parameters[name] for name in names if parameters[name].ndim > 1]
        return sum(each.numel() * (1.0 if uses is None else uses.get(id(each), 0.0)) for each in matrices)

    def work(names: Iterable[str]) -> float:
        return (3 if _trains(names, parameters) else 2) * elements(names)

    again = 1 if is_checkpointed else 0
    inside = frozen_from(anatomy, stack, parameters)
    through = sum(elements(block) for block in inside)
    above = [block for block in anatomy.blocks if block not in inside]
    below = [] if uses is None else [each for each in anatomy.embeddings if each not in anatomy.tied]
    learns = elements(name for name in below if parameters[name].requires_grad)
    total = (2 + again) * through + work((*anatomy.heads, *anatomy.tied)) + elements(below) + learns
    total += sum(work(block) + again * elements(block) for block in above)
    lost = (1 + again) * through + learns
    if uses is not None and inside:  # the convolution behind the prefix needs no gradient of its input either
        behind = anatomy.blocks[anatomy.blocks.index(inside[-1]) + 1 :]
        lost += elements(behind[0][:1]) if behind else 0.0
    return lost / total if total else 0.0


class WeightUses:
    """Counts in one forward pass at how many positions each weight matrix is used.

    Args:
        model: Its modules get hooks until `remove`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.positions: dict[int, float] = {}
        modules = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
        owners = [module for module in modules if _matrices(module)]
        self._handles = [module.register_forward_hook(ModuleHook(self._count)) for module in owners]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _count(self, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.ndim]
        if isinstance(module, _ConvNd):
            seen = [each for each in inputs if isinstance(each, Tensor)] if module.transposed else tensors
            positions = seen[0].numel() / seen[0].shape[1] if seen else 0.0
        else:
            positions = tensors[0].numel() / tensors[0].shape[-1] if tensors else 0.0
        for matrix in _matrices(module):
            self.positions[id(matrix)] = self.positions.get(id(matrix), 0.0) + positions


def _matrices(module: nn.Module) -> list[Parameter]:
    return [each for each in module.parameters(recurse=False) if each.ndim > 1]


def frozen_from(anatomy: Anatomy, stack: Stack, parameters: Mapping[str, Parameter]) -> list[tuple[str, ...]]:
    """The frozen prefix of a stack, and of the next ones of its tower as long as whole stacks are frozen."""
    found: list[tuple[str, ...]] = []
    behind = anatomy.stacks[anatomy.stacks.index(stack) :]
    for each in (other for other in behind if other.tower == stack.tower):
        num_frozen = frozen_prefix(each, parameters)
        found += each.blocks[:num_frozen]
        if num_frozen < len(each.blocks):
            break
    return found


def _trains(names: Iterable[str], parameters: Mapping[str, Parameter]) -> bool:
    return any(parameters[name].requires_grad for name in names)
