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
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.call_detour import CallDetour, compiled_call
from lighter_freezers.engine.effects.checkpointed_prefix import CheckpointedPrefix, gradient_end, segments_of
from lighter_freezers.engine.effects.frozen_prefix import Surroundings
from lighter_freezers.engine.effects.gradient_leaves import gradient_leaves, hides_on_the_way
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

    def cuts(self, block: nn.Module, hidden: Tensor) -> bool:
        """Whether the gradient ends in front of this block for these hidden states."""
        return any(gate.cuts(block, hidden) for gate in self._gates or ())

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

    def __init__(self, blocks: list[nn.Module], stack: Stack, around: Surroundings) -> None:
        self._blocks = blocks
        self._block = blocks[0]
        self._stack = stack
        self._around = around
        self._parameters = [around.parameters[name] for name in stack.blocks[0]]
        self._handle: RemovableHandle | None = None
        self._after: RemovableHandle | None = None  # behind the first block
        self._behind: RemovableHandle | None = None  # where the prefix ends
        self._prefix: list[nn.Module] = []  # the frozen blocks when that was found out
        self._leaf: Tensor | None = None
        self._is_known = self._is_wrapped = False  # whether a segment is inside the call of the first block
        self._segments = CheckpointedPrefix()
        self._detour: CallDetour | None = None
        self._is_held = self._was_cut = self._is_probe = self._cuts_blindly = False

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
        self._unwatch()  # until re-entrant checkpointing is seen
        if self._around.is_compiled:
            self._cuts_blindly = self._may_cut_blindly()

    def cuts(self, block: nn.Module, hidden: Tensor) -> bool:
        """Whether the gradient ends in front of this block, if it is the first one."""
        if block is not self._block or (self._handle or self._detour) is None:
            return False
        return not self._is_wrapped and not _is_reentrant(block) and self._may_cut(hidden)

    def _may_cut_blindly(self) -> bool:
        """Whether names alone allow a cut: a model compiled as a whole has no autograd graph to inspect."""
        learning = self._around.trainable_below(self._stack)
        is_allowed = (
            self._is_held and learning <= self._around.tied if learning else self._around.marks_inputs
        )
        return is_allowed and not _is_reentrant(self._block)

    def open(self) -> None:
        """Remove the hooks, so that every gradient passes."""
        if self._handle is not None:
            self._handle.remove()
        if self._detour is not None:
            self._detour.remove()
        self._handle = self._detour = None
        self._unwatch()

    def _unwatch(self) -> None:
        for handle in (self._after, self._behind):
            if handle is not None:
                handle.remove()
        self._after = self._behind = self._leaf = None
        self._segments, self._is_known, self._is_wrapped = CheckpointedPrefix(), False, False

    def _look_at_output(self, block: nn.Module, arguments: object, output: object) -> object:
        """Whether checkpointing is inside the call of a block: then what it gets must require a gradient."""
        leaf, self._leaf = self._leaf, None
        made = [each for each in tree_leaves(output) if isinstance(each, Tensor) and each.requires_grad]
        if leaf is None or not made:
            return output
        self._is_known, self._is_wrapped = True, any(hides_on_the_way(each, leaf) for each in made)
        is_alone = all(below is leaf for each in made for below in gradient_leaves(each))
        return output if not is_alone else tree_map_only(Tensor, Tensor.detach, output)

    def _watch_end(self) -> None:
        """Look at the hidden states behind the last frozen block, for re-entrant segments below them."""
        num_frozen = self._around.num_frozen(self._stack)
        self._prefix = self._blocks[:num_frozen]
        if num_frozen < len(self._blocks):
            behind, hook = self._blocks[num_frozen], ModuleHook(self._look_behind)
            self._behind = behind.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            self._behind = self._blocks[-1].register_forward_hook(ModuleHook(self._look_after))

    def _look_behind(
        self, block: nn.Module, arguments: tuple[object, ...], keywords: dict[str, object]
    ) -> None:
        self._end_segments(
            next((each for each in (*arguments, *keywords.values()) if isinstance(each, Tensor)), None)
        )

    def _look_after(self, block: nn.Module, arguments: object, output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._end_segments(hidden if isinstance(hidden, Tensor) else None)

    def _end_segments(self, hidden: Tensor | None) -> None:
        if hidden is None or torch._C._current_graph_task_id() != -1:
            return
        segments = segments_of(hidden)
        if not segments:
            self._explain_segments(hidden)
            return
        if any(parameter.requires_grad for block in self._prefix for parameter in block.parameters()):
            self._segments = CheckpointedPrefix()  # other code has thawed it: no transition comes
            return
        if self._may_cut(hidden, len(segments)):
            self._segments.end_gradient(segments)
        hides = list(gradient_leaves(hidden)).count(None) > len(segments)
        if self._segments.learns or hides:
            why = "gradient checkpointing is re-entrant"
            self._around.warn_of_loss(self._stack, self._block, why, _NOT_REENTRANT, hidden)

    def _explain_segments(self, hidden: Tensor) -> None:
        """Warn if a gradient crosses the prefix only because segments that do not show here may need it."""
        if not hidden.requires_grad or self._around.has_told_of_loss:
            return
        learning = self._around.trainable_below(self._stack)
        if learning & self._around.in_blocks:  # the user's choice
            return
        if any(leaf is not None and self._learns(leaf) for leaf in gradient_leaves(hidden)):
            self._explain(hidden)
            return
        why = "gradient checkpointing is re-entrant"
        self._around.warn_of_loss(self._stack, self._block, why, _NOT_REENTRANT, hidden)

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
        if self._is_probe:
            self._leaf = Parameter(hidden.new_empty(0))
            hidden = gradient_end(self._leaf, hidden)
        return (
            ((hidden, *arguments[1:]), keywords) if arguments else (arguments, {**keywords, str(key): hidden})
        )

    def _cuts(self, hidden: Tensor) -> bool:
        if torch.compiler.is_compiling():  # no autograd graph exists yet; changed flags cause a recompilation
            return self._cuts_blindly
        if torch._C._current_graph_task_id() == -1:  # a recomputation repeats what was decided
            is_inside = not torch.is_grad_enabled()  # of a re-entrant segment, if the input has a graph
            is_reentrant = is_inside or self._is_wrapped or _is_reentrant(self._block)
            self._was_cut = hidden.requires_grad and not is_reentrant and self._may_cut(hidden)
            self._is_probe = self._was_cut and not self._is_known and self._detour is None
            if self._is_probe and self._after is None:
                self._after = self._block.register_forward_hook(ModuleHook(self._look_at_output))
            if hidden.requires_grad and is_reentrant and self._behind is None:
                self._watch_end()
            if torch.is_grad_enabled():
                self._around.stop_counting()
        return self._was_cut

    def _may_cut(self, hidden: Tensor, num_segments: int = 0) -> bool:
        """Whether nothing below learns through hidden states, whatever is in this number of segments."""
        is_tied = False
        for leaf in gradient_leaves(hidden):
            if leaf is None and num_segments:
                num_segments -= 1
                continue
            is_tied = is_tied or id(leaf) in self._around.tied
            if self._learns(leaf):
                if not self._around.has_told_of_loss:  # else its text is built at every step
                    self._explain(hidden)
                return False
        if is_tied:
            self._around.tell_of_cut(self._stack)
        return True

    def _learns(self, leaf: Tensor | None) -> bool:
        """Whether something below needs a gradient that this leaf gets through the prefix."""
        if id(leaf) in self._around.tied and self._is_held:
            return False
        return not self._around.marks_inputs or leaf is None or isinstance(leaf, Parameter)

    def _explain(self, hidden: Tensor) -> None:
        """Warn if embeddings and the like learn below; trainable blocks below are the user's choice."""
        leaves = {id(leaf) for leaf in gradient_leaves(hidden)}
        learning = leaves & self._around.names.keys()
        if not learning or learning & self._around.in_blocks:
            return
        if self._is_held:
            learning = learning - self._around.tied  # a tied weight would not prevent the cut
        if not learning:
            return
        names = self._around.summary(self._around.names[key] for key in learning)
        why, way_out = f"{names} below trains", f"Freeze {names} too, unless it has to learn."
        self._around.warn_of_loss(self._stack, self._block, why, way_out, hidden)


def _gates_of(model: nn.Module, is_silent: bool) -> list[_Gate]:
    """One gate for the first block of each stack."""
    around = Surroundings(model, is_silent)
    stacks = zip(around.anatomy.stacks, block_modules(model, around.anatomy), strict=True)
    return [_Gate(list(blocks), stack, around) for stack, blocks in stacks if blocks]


def _is_reentrant(block: nn.Module) -> bool:
    """Whether transformers uses re-entrant checkpointing for a block, which needs a gradient at its input."""
    if not getattr(block, "gradient_checkpointing", False):
        return False
    how = getattr(getattr(block, "_gradient_checkpointing_func", None), "keywords", {})
    return how.get("use_reentrant", True) is not False
