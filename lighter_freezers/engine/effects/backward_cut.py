"""Ends the backward pass above a frozen prefix of blocks that no gradient has to cross.

Frozen blocks save their part of the backward pass only while nothing below them requires a gradient. With a
tied head the embedding requires one; with `enable_input_require_grads` the embedding's output does. A
boundary in front of the first block ends the gradient there if the graph shows that nothing below learns from
it.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.call_detour import CallDetour, compiled_call
from lighter_freezers.engine.effects.frozen_prefix import Surroundings
from lighter_freezers.engine.effects.gradient_leaves import gradient_leaves
from lighter_freezers.engine.effects.module_hooks import ModuleHook
from lighter_freezers.selection.anatomy import Stack
from lighter_freezers.selection.anatomy.block_modules import block_modules

__all__ = ["GradientBoundary"]

_Call: TypeAlias = tuple[tuple[object, ...], dict[str, object]]

_NOT_REENTRANT = "Turn it on with use_reentrant=False: {'use_reentrant': False}."


class GradientBoundary:
    """The boundaries of one model at which the backward pass may end.

    Nothing is installed while no prefix is frozen. A gradient is cut only if all that it would reach below is
    one of these:

    - the output of an embedding that peft or transformers marked by `enable_input_require_grads`: nothing
      learns from it, so every other gradient stays what it was;
    - the weight of an embedding that the head shares, while the ledger holds the prefix: it keeps learning
      through the head.

    Where something else below trains, such as a position embedding, the gradient passes, and one warning
    states the cost.

    Args:
        model: Any module.
        is_silent: Log nothing, as all ranks but one should.
    """

    def __init__(self, model: nn.Module, *, is_silent: bool = False) -> None:
        self._model = model
        self._is_silent = is_silent
        self._gates: list[_Gate] | None = None

    def follow(self, refusing: Iterable[Parameter] = ()) -> None:
        """Add or remove boundaries according to what is frozen now.

        Args:
            refusing: Parameters whose blocks get no boundary, because the user asked for `cut_gradient:
                never`.
        """
        if self._gates is None:  # also while all trains: no transition should have to inspect the model
            self._gates = _gates_of(self._model, self._is_silent)
        refused = set(map(id, refusing))
        for gate in self._gates:
            gate.follow(refused)

    def forget(self) -> None:
        """Inspect the model again at the next `follow`: its parameters or their names have changed."""
        self.remove()
        self._gates = None

    def remove(self) -> None:
        """Remove all boundaries, so that every gradient passes."""
        for gate in self._gates or ():
            gate.open()


class _Gate:
    """The boundary before the first block of a stack: open, or checking the graph of each input."""

    def __init__(self, block: nn.Module, stack: Stack, around: Surroundings) -> None:
        self._block = block
        self._stack = stack
        self._around = around
        self._parameters = [around.parameters[name] for name in stack.blocks[0]]
        self._handle: RemovableHandle | None = None
        self._detour: CallDetour | None = None
        self._is_held = self._was_cut = self._cuts_blindly = False

    def follow(self, refused: set[int]) -> None:
        """Close while nothing of the first block trains and no rule refuses a boundary; open otherwise."""
        is_frozen = not any(parameter.requires_grad for parameter in self._parameters)
        if not is_frozen or any(id(parameter) in refused for parameter in self._parameters):
            self.open()
            return
        self._around.count_uses()
        self._is_held = any(map(ledger.is_held, self._parameters))
        if self._handle is None and self._detour is None:
            self._close()
        if self._around.is_compiled:
            self._cuts_blindly = self._may_cut_blindly()

    def _may_cut_blindly(self) -> bool:
        """Whether names alone allow a cut: a model compiled as a whole has no autograd graph to inspect."""
        learning = self._around.trainable_below(self._stack)
        is_allowed = (
            self._is_held and learning <= self._around.tied if learning else self._around.marks_inputs
        )
        return is_allowed and not _is_reentrant(self._block)

    def open(self) -> None:
        """Remove the hook, so that every gradient passes."""
        if self._handle is not None:
            self._handle.remove()
        if self._detour is not None:
            self._detour.remove()
        self._handle = self._detour = None

    def _close(self) -> None:
        if compiled_call(self._block) is None:
            self._handle = self._block.register_forward_pre_hook(ModuleHook(self._look), with_kwargs=True)
        else:  # a hook would be compiled into the graph, whose guards ignore hooks
            self._detour = CallDetour(self._block, self._call_compiled)

    def _call_compiled(
        self, compiled: Callable[..., object], arguments: tuple[object, ...], keywords: dict[str, object]
    ) -> object:
        cut, named = self._look(self._block, arguments, keywords) or (arguments, keywords)
        return compiled(*cut, **named)

    def _look(
        self, block: nn.Module, arguments: tuple[object, ...], keywords: dict[str, object]
    ) -> _Call | None:
        """Detach the hidden states from what is below, if nothing there learns through them."""
        key = next((key for key, value in keywords.items() if isinstance(value, Tensor)), None)
        hidden = arguments[0] if arguments else keywords.get(key or "")
        if not isinstance(hidden, Tensor) or not self._cuts(hidden):
            return None
        hidden = hidden.detach()
        return (
            ((hidden, *arguments[1:]), keywords) if arguments else (arguments, {**keywords, str(key): hidden})
        )

    def _cuts(self, hidden: Tensor) -> bool:
        if torch.compiler.is_compiling():  # no autograd graph exists yet; changed flags cause a recompilation
            return self._cuts_blindly
        if torch._C._current_graph_task_id() == -1:  # a recomputation repeats what was decided
            self._was_cut = torch.is_grad_enabled() and hidden.requires_grad and self._may_cut(hidden)
            if torch.is_grad_enabled():
                self._around.stop_counting()
        return self._was_cut

    def _may_cut(self, hidden: Tensor) -> bool:
        if _is_reentrant(self._block):
            why = "gradient checkpointing is re-entrant"
            self._around.warn_of_loss(self._stack, self._block, why, _NOT_REENTRANT, hidden)
            return False
        is_tied = False
        for leaf in gradient_leaves(hidden):
            if id(leaf) in self._around.tied and self._is_held:
                is_tied = True
            elif not (self._around.marks_inputs and leaf is not None and not isinstance(leaf, Parameter)):
                if not self._around.has_told_of_loss:  # else its text is built at every step
                    self._explain(hidden)
                return False
        if is_tied:
            self._around.tell_of_cut(self._stack)
        return True

    def _explain(self, hidden: Tensor) -> None:
        """Warn if embeddings and the like learn below; trainable blocks below are the user's choice."""
        leaves = {id(leaf) for leaf in gradient_leaves(hidden)}
        learning = leaves & self._around.names.keys()
        if not learning or learning & self._around.in_blocks:
            return
        if self._is_held:
            learning = learning - self._around.tied  # a tied weight would not prevent the cut
        names = self._around.summary(self._around.names[key] for key in learning)
        why, way_out = f"{names} below trains", f"Freeze {names} too, unless it has to learn."
        self._around.warn_of_loss(self._stack, self._block, why, way_out, hidden)


def _gates_of(model: nn.Module, is_silent: bool) -> list[_Gate]:
    """One gate for the first block of each stack."""
    around = Surroundings(model, is_silent)
    stacks = zip(around.anatomy.stacks, block_modules(model, around.anatomy), strict=True)
    return [_Gate(blocks[0], stack, around) for stack, blocks in stacks if blocks]


def _is_reentrant(block: nn.Module) -> bool:
    """Whether transformers uses re-entrant checkpointing for a block, which needs a gradient at its input."""
    if not getattr(block, "gradient_checkpointing", False):
        return False
    how = getattr(getattr(block, "_gradient_checkpointing_func", None), "keywords", {})
    return how.get("use_reentrant", True) is not False
