"""Where the backward pass may end: below a frozen prefix of blocks that no gradient has to cross.

Frozen blocks save their part of the backward pass only while nothing below them asks for a gradient. A tied
head makes the embedding ask, `enable_input_require_grads` makes the embedding's output ask. A boundary in
front of the first block ends the gradient there, if the graph shows that nobody below learns from it.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.frozen_prefix import Surroundings
from lighter_freezers.engine.effects.gradient_leaves import gradient_leaves
from lighter_freezers.selection.anatomy import Stack
from lighter_freezers.selection.anatomy.block_modules import block_modules

__all__ = ["GradientBoundary"]

_Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

_NOT_REENTRANT = "Turn it on with use_reentrant=False: {'use_reentrant': False}."


class GradientBoundary:
    """The places of one model at which the backward pass may end.

    Nothing is installed while no prefix is frozen. A gradient is cut only if all that it would reach below is
    one of these:

    - the output of an embedding that peft or transformers marked by `enable_input_require_grads`: nothing
      learns from it, so every other gradient stays what it was;
    - the weight of an embedding that the head shares, while the ledger holds the prefix: it goes on learning
      through the head.

    Where something else below trains, such as a position embedding, the gradient is let through and one
    warning says what that costs.

    Args:
        model: Any module.
        is_silent: Log nothing, as all ranks but one should.
    """

    def __init__(self, model: nn.Module, *, is_silent: bool = False) -> None:
        self._model = model
        self._is_silent = is_silent
        self._gates: list[_Gate] | None = None

    def follow(self, refusing: Iterable[Parameter] = ()) -> None:
        """Bring the boundaries in line with what is frozen now.

        Args:
            refusing: Parameters whose blocks are to have no boundary, by the user's wish.
        """
        if self._gates is None:
            if all(parameter.requires_grad for parameter in self._model.parameters()):
                return
            self._gates = _gates_of(self._model, self._is_silent)
        refused = set(map(id, refusing))
        for gate in self._gates:
            gate.follow(refused)

    def forget(self) -> None:
        """Look at the model anew at the next `follow`: its parameters are others, or have other names."""
        self.remove()
        self._gates = None

    def remove(self) -> None:
        """Let every gradient through."""
        for gate in self._gates or ():
            gate.open()


class _Gate:
    """The way into the first block of a stack: open, or with a look at each gradient that would come back."""

    def __init__(self, block: nn.Module, stack: Stack, around: Surroundings) -> None:
        self._block = block
        self._stack = stack
        self._around = around
        self._parameters = [around.parameters[name] for name in stack.blocks[0]]
        self._handle: RemovableHandle | None = None
        self._compiled: Callable[..., Any] | None = None
        self._is_held = self._was_cut = self._cuts_blindly = False

    def follow(self, refused: set[int]) -> None:
        """Stand guard while nothing of the first block trains and nobody refuses."""
        is_frozen = not any(parameter.requires_grad for parameter in self._parameters)
        if not is_frozen or any(id(parameter) in refused for parameter in self._parameters):
            self.open()
            return
        self._is_held = any(map(ledger.is_held, self._parameters))
        if self._handle is None and self._compiled is None:
            self._close()
        if self._around.is_compiled:
            self._cuts_blindly = self._may_cut_blindly()

    def _may_cut_blindly(self) -> bool:
        """What the names say, where a whole model is compiled and there is no graph to look at."""
        learning = self._around.trainable_below(self._stack)
        is_allowed = (
            self._is_held and learning <= self._around.tied if learning else self._around.marks_inputs
        )
        return is_allowed and not _is_reentrant(self._block)

    def open(self) -> None:
        """Let everything through."""
        if self._handle is not None:
            self._handle.remove()
        if self._compiled is not None:
            self._block._compiled_call_impl = self._compiled
        self._handle = self._compiled = None

    def _close(self) -> None:
        compiled = self._block._compiled_call_impl
        if compiled is None:
            self._handle = self._block.register_forward_pre_hook(self._look, with_kwargs=True)
            return
        self._compiled = compiled  # hooks would be inside the graph, whose guards do not look at hooks
        self._block._compiled_call_impl = self._call_compiled

    def _call_compiled(self, *arguments: Any, **keywords: Any) -> Any:
        assert self._compiled is not None
        cut, named = self._look(self._block, arguments, keywords) or (arguments, keywords)
        return self._compiled(*cut, **named)

    def _look(self, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> _Call | None:
        """Cut the hidden states off from what is below, if nobody there learns from them."""
        key = next((key for key, value in keywords.items() if isinstance(value, Tensor)), None)
        hidden = arguments[0] if arguments else keywords.get(key or "")
        if not isinstance(hidden, Tensor) or not self._cuts(hidden):
            return None
        hidden = hidden.detach()
        return (
            ((hidden, *arguments[1:]), keywords) if arguments else (arguments, {**keywords, str(key): hidden})
        )

    def _cuts(self, hidden: Tensor) -> bool:
        if torch.compiler.is_compiling():  # there is no graph to look at yet; flags that change compile anew
            return self._cuts_blindly
        if torch._C._current_graph_task_id() == -1:  # checkpointing that computes again has to do as before
            self._was_cut = torch.is_grad_enabled() and hidden.requires_grad and self._may_cut(hidden)
        return self._was_cut

    def _may_cut(self, hidden: Tensor) -> bool:
        if _is_reentrant(self._block):
            why = "gradient checkpointing is re-entrant"
            self._around.warn_of_loss(self._stack, self._block, why, _NOT_REENTRANT)
            return False
        is_tied = False
        for leaf in gradient_leaves(hidden):
            if id(leaf) in self._around.tied and self._is_held:
                is_tied = True
            elif not (self._around.marks_inputs and leaf is not None and not isinstance(leaf, Parameter)):
                if not self._around.has_told_of_loss:  # else it would be put into words at every step
                    self._explain(hidden)
                return False
        if is_tied:
            self._around.tell_of_cut(self._stack)
        return True

    def _explain(self, hidden: Tensor) -> None:
        """Warn where it is embeddings and the like that learn; frozen blocks above others are a choice."""
        leaves = {id(leaf) for leaf in gradient_leaves(hidden)}
        learning = leaves & self._around.names.keys()
        if not learning or learning & self._around.in_blocks:
            return
        if self._is_held:
            learning = learning - self._around.tied  # they would not stand in the way
        names = self._around.summary(self._around.names[key] for key in learning)
        why, way_out = f"{names} below trains", f"Freeze {names} too, unless it has to learn."
        self._around.warn_of_loss(self._stack, self._block, why, way_out)


def _gates_of(model: nn.Module, is_silent: bool) -> list[_Gate]:
    """A gate in front of the first block of each stack."""
    around = Surroundings(model, is_silent)
    stacks = zip(around.anatomy.stacks, block_modules(model, around.anatomy), strict=True)
    return [_Gate(blocks[0], stack, around) for stack, blocks in stacks if blocks]


def _is_reentrant(block: nn.Module) -> bool:
    """Whether transformers checkpoints a block in the old way, which needs a gradient at its input."""
    if not getattr(block, "gradient_checkpointing", False):
        return False
    how = getattr(getattr(block, "_gradient_checkpointing_func", None), "keywords", {})
    return how.get("use_reentrant", True) is not False
