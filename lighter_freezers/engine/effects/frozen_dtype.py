"""Lets the blocks of a frozen prefix compute in bfloat16 below a float32 rest; their weights stay."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lighter_freezers._log import log
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.backward_cut import GradientBoundary
from lighter_freezers.engine.effects.call_detour import Call, CallDetour, detours_of
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.anatomy.block_modules import block_modules
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["FrozenDtype", "computes_in_bfloat16"]

_FEW_INSTRUCTIONS = ("DEFAULT", "NO AVX", "AVX2")
_ASKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of a CPU with AVX-512


class _HalfCall(CallDetour):
    """The call of a block in bfloat16."""


def computes_in_bfloat16(block: nn.Module) -> bool:
    """Whether a frozen block is called in bfloat16 by this module."""
    return any(isinstance(detour, _HalfCall) for detour in detours_of(block))


class FrozenDtype:
    """The blocks of one model that compute in bfloat16: the first ones, of which all is held and asks for it.

    Autocast does it, block by block, so that nothing has to be given back when they thaw, and checkpoints
    contain the float32 weights. A block through which something learns computes in float32, as do all under a
    precision of the Trainer that is lower.

    Args:
        model: The module that trains.
        boundary: Knows whether the gradient ends in front of a block.
        is_silent: Log nothing, as all ranks but one should.
    """

    def __init__(self, model: nn.Module, boundary: GradientBoundary, *, is_silent: bool = False) -> None:
        self._model = model
        self._boundary = boundary
        self._calls: dict[nn.Module, _HalfCall] = {}
        self._said: set[str] = set() if not is_silent else {"learns", "slow"}
        self._learns = False

    def follow(self, *, is_asked_for: bool) -> None:
        """Let those compute in bfloat16 that are held now.

        Args:
            is_asked_for: Whether any active hold asks for it; if none does, no module is looked at.
        """
        wanted = dict.fromkeys(_asking_blocks(self._model)) if is_asked_for else {}
        for block in [each for each in self._calls if each not in wanted]:
            self._calls.pop(block).remove()
        for block in wanted:
            if block not in self._calls:
                # inside the detours of a cache, which recognises what it handed on
                self._calls[block] = _HalfCall(block, partial(self._call, block), is_innermost=True)
        self._learns = False

    def _call(
        self, block: nn.Module, own: Call, arguments: tuple[object, ...], keywords: dict[str, object]
    ) -> object:
        given = list(_tensors((arguments, keywords)))
        kind = given[0].device.type if given else "cpu"
        if not given or given[0].dtype != torch.float32 or torch.is_autocast_enabled(kind):
            return own(*arguments, **keywords)
        if torch.is_grad_enabled() and not self._learns:
            is_cut = not given[0].requires_grad or self._boundary.cuts(block, given[0])
            self._learns = not is_cut or any(each.requires_grad for each in given[1:])
        if self._learns:
            why = "something below learns through them, or re-entrant checkpointing asks for a gradient"
            self._warn("learns", f"frozen_dtype has no effect, and frozen blocks compute in float32: {why}.")
            return own(*arguments, **keywords)
        if kind == "cpu" and not _has_instructions():
            self._warn(
                "slow",
                "frozen_dtype: this CPU has no instructions for bfloat16, so that frozen blocks take up to "
                "several times as long as in float32. It is for GPUs, AVX-512 BF16 and AMX: remove it here.",
            )
        with torch.autocast(kind, torch.bfloat16):
            output = own(*arguments, **keywords)
        return tree_map_only(Tensor, _widened, output)

    def _warn(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning(text)


def _has_instructions() -> bool:
    """Whether this CPU multiplies in bfloat16, as far as torch tells."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability != "AVX512":
        return capability not in _FEW_INSTRUCTIONS
    asks = [getattr(torch.cpu, name, None) for name in _ASKS]
    return None in asks or any(ask() for ask in asks if ask is not None)


def _widened(made: Tensor) -> Tensor:
    return made.float() if made.dtype == torch.bfloat16 else made


def _tensors(values: object) -> Iterable[Tensor]:
    return (each for each in tree_leaves(values) if isinstance(each, Tensor))


def _asking_blocks(model: nn.Module) -> list[nn.Module]:
    """The leading blocks of each stack of which everything is held by terms that ask for it."""
    parameters, anatomy = canonical_parameters(model), anatomy_of(model)
    found: list[nn.Module] = []
    for stack, modules in zip(anatomy.stacks, block_modules(model, anatomy), strict=True):
        for block, module in zip(stack.blocks, modules, strict=False):
            terms = [ledger.terms_of(parameters[name]) for name in block]
            if not all(any(each.frozen_dtype for each in held) for held in terms):
                break
            found.append(module)
    return found
