"""Finds the leading blocks of a model in which nothing trains, and what forbids caching their output."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine.effects.compiled_graphs import is_compiled
from lighter_freezers.engine.effects.module_hooks import ModuleHook
from lighter_freezers.engine.trainer_strategies import has_whole_modules
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.anatomy.block_modules import block_modules
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["FrozenBlocks", "HookWatch", "frozen_blocks"]

_HARMLESS = ("peft", "torch")  # hooks that prepare what a module computes with


@dataclass(frozen=True)
class FrozenBlocks:
    """The frozen prefix of a model.

    Attributes:
        blocks: Its modules, in forward order.
        title: What the log calls it.
        why: Why its output must not be cached.
        names: Parameter id -> canonical name, of the whole model.
    """

    blocks: tuple[nn.Module, ...] = ()
    title: str = ""
    why: str = ""
    names: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    def phrase(self, parameters: Iterable[int]) -> str:
        """A short phrase for parameters, by their ids."""
        return NameSummary(list(self.names.values())).compress(self.names.get(key, "?") for key in parameters)


def frozen_blocks(model: nn.Module, strategy: object) -> FrozenBlocks:
    """Find the frozen prefix.

    Args:
        model: The LightningModule.
        strategy: The Trainer's.
    """
    parameters = canonical_parameters(model)
    anatomy = anatomy_of(model)
    first = next(iter(anatomy.towers.values()), ())
    stacks = dict(zip(anatomy.stacks, block_modules(model, anatomy), strict=True))
    blocks = [(module, block) for s in first for module, block in zip(stacks[s], s.blocks, strict=False)]
    is_frozen = [not any(parameters[name].requires_grad for name in block) for _, block in blocks]
    num_frozen = (*is_frozen, False).index(False)
    if not num_frozen:
        return FrozenBlocks()
    names = {id(parameter): name for name, parameter in parameters.items()}
    modules = [module for module, _ in blocks]
    title = NameSummary(list(parameters)).compress(n for _, block in blocks[:num_frozen] for n in block)
    why = _objection(model, modules, num_frozen, strategy)
    if any(stack.num_passes > len(stack.blocks) for stack in first) or len(set(modules)) < len(modules):
        why = "the layers of the model share their weights"
    return FrozenBlocks(tuple(modules[:num_frozen]), title, why, names)


def _objection(model: nn.Module, blocks: list[nn.Module], num_frozen: int, strategy: object) -> str:
    if not has_whole_modules(strategy):
        return f"{type(strategy).__name__} splits the layers among processes, and all of them must run"
    around = [module for module in model.modules() if is_compiled(module) and module not in blocks]
    if any(blocks[0] in module.modules() for module in around):
        return (
            "the model is compiled as a whole. Compile its blocks instead: "
            "lighter_freezers.compile_blocks(model)"
        )
    return HookWatch(blocks[:num_frozen]).found()


class HookWatch:
    """Finds hooks that would not run while some blocks are skipped.

    Args:
        blocks: The modules.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self._blocks = tuple(blocks)
        self._next_id = -1

    def found(self) -> str:
        """Which hook would not run; "" if none. It looks only when torch has counted a new hook somewhere."""
        if self._next_id == RemovableHandle.next_id:
            return ""
        of_all = (*_global_forward_hooks.values(), *_global_forward_pre_hooks.values())
        for module in (module for block in self._blocks for module in block.modules()):
            for hook in (*of_all, *module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                if not _is_harmless(hook):
                    name = getattr(hook, "__name__", type(hook).__name__)
                    return f"the hook {name} on its {type(module).__name__} would not run"
        self._next_id = RemovableHandle.next_id
        return ""


def _is_harmless(hook: object) -> bool:
    home = str(getattr(hook, "__module__", ""))
    return isinstance(hook, ModuleHook) or home.partition(".")[0] in _HARMLESS
