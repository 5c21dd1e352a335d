"""Warns before a freezing schedule makes `torch.compile` exceed its limit of graphs.

A graph is valid for one set of `requires_grad` flags. Torch keeps up to
`torch._dynamo.config.recompile_limit` graphs of one function (torch 2.6: `cache_size_limit`), and runs it
uncompiled when it would need another.
"""

from collections.abc import Iterator, Sequence

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.engine.effects.call_detour import compiled_call
from lighter_freezers.engine.effects.stale_graphs import GUARDS_FLAGS
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.anatomy.block_modules import block_modules

__all__ = ["CompiledGraphs", "is_compiled"]

_MANY = 4  # transitions: from this number on, one graph of the whole model for each is worth a warning


class CompiledGraphs:
    """The compiled parts of one model.

    Args:
        model: Any module.
    """

    def __init__(self, model: nn.Module) -> None:
        compiled = [module for module in model.modules() if is_compiled(module)]
        self._stacks: list[list[nn.Module]] = []
        self._whole: nn.Module | None = None  # the model, where it is compiled as a whole
        self._variants: set[tuple[object, ...]] = set()
        self._has_warned = False
        if not compiled:
            return
        anatomy = anatomy_of(model)
        stacks = block_modules(model, anatomy)
        self._stacks = [stack for stack in stacks if any(map(is_compiled, stack))]
        blocks = [block for stack in stacks for block in stack]
        if any(_num_inside(module, blocks) > 1 for module in compiled):
            self._whole = model

    def warn_of_schedule(self, num_transitions: int) -> None:
        """Warn how often a schedule recompiles a model that is compiled as a whole.

        Args:
            num_transitions: How often something will freeze or thaw.
        """
        if self._whole is None or num_transitions < _MANY:
            return
        self._has_warned = True
        name, limit = _recompile_limit()
        is_beyond = num_transitions >= limit and GUARDS_FLAGS
        log.warning(
            "The model is compiled as a whole, and its schedule has %d transitions: each compiles all "
            "of it again.%s Compile its blocks instead: lighter_freezers.compile_blocks(model).",
            num_transitions,
            f" After {limit} graphs ({name}) it runs uncompiled for good." if is_beyond else "",
        )

    def follow(self, optimizer_step: int) -> None:
        """Count the graphs, and warn of many of a whole model, or when torch will compile no other block."""
        if self._has_warned or (self._whole is None and not self._stacks):
            return
        if self._whole is not None:
            self._follow_whole(self._whole, optimizer_step)
            return
        for stack in self._stacks:
            self._variants.update(_variants(stack))
        name, limit = _recompile_limit()
        if len(self._variants) > limit and GUARDS_FLAGS:  # else discarded graphs never reach it
            self._has_warned = True
            log.warning(
                "step %d: the compiled blocks have been frozen in %d different ways by now, and torch keeps "
                "%d graphs: it runs the others uncompiled. Freeze whole blocks, or raise %s.",
                optimizer_step,
                len(self._variants),
                limit,
                name,
            )

    def _follow_whole(self, model: nn.Module, optimizer_step: int) -> None:
        # what a policy, an operation or a metric decides is in no schedule
        self._variants.add(tuple(parameter.requires_grad for parameter in model.parameters()))
        if len(self._variants) > _MANY:
            self._has_warned = True
            name, limit = _recompile_limit()
            end = f" After {limit} graphs ({name}) it runs uncompiled for good." if GUARDS_FLAGS else ""
            log.warning(
                "step %d: the model is compiled as a whole, and has been frozen in %d different ways by now: "
                "each compiles all of it again.%s Compile its blocks: "
                "lighter_freezers.compile_blocks(model).",
                optimizer_step,
                len(self._variants),
                end,
            )


def _variants(stack: Sequence[nn.Module]) -> Iterator[tuple[object, ...]]:
    """What a graph depends on: the class, the flags, and whether the input needs a gradient."""
    has_gradient = False
    for block in stack:
        flags = tuple(parameter.requires_grad for parameter in block.parameters())
        yield type(block), flags, has_gradient
        has_gradient = has_gradient or any(flags)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module itself, not a module around it, was given to `torch.compile`."""
    is_wrapper = type(module).__name__ == "OptimizedModule"  # by name: the class imports dynamo
    is_compiled_module = getattr(module, "_compiler_ctx", None) is not None  # of a LightningModule
    return is_wrapper or compiled_call(module) is not None or is_compiled_module


def _num_inside(module: nn.Module, blocks: Sequence[nn.Module]) -> int:
    inside = {id(below) for below in module.modules()}
    return sum(id(block) in inside for block in blocks)


def _recompile_limit() -> tuple[str, int]:
    """What torch calls the number of graphs that it keeps, and that number."""
    from torch._dynamo import config

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    return f"torch._dynamo.config.{name}", int(getattr(config, name))
