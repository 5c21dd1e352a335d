"""Finds what trains below a frozen prefix of a model, and logs each message about it once."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lighter_freezers._log import log
from lighter_freezers.engine.effects.compiled_graphs import is_compiled
from lighter_freezers.engine.effects.lost_gain import WeightUses, frozen_from, frozen_prefix, lost_share
from lighter_freezers.selection.anatomy import Stack, anatomy_of
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["Surroundings"]

_MARKS_INPUTS = ("make_inputs_require_grad", "make_inputs_require_grads")  # hooks of peft and transformers


class Surroundings:
    """What the gates of one model share: its parameters, and the messages that are logged once."""

    def __init__(self, model: nn.Module, is_silent: bool) -> None:
        self._model = model
        self._uses: WeightUses | None = None
        self.anatomy = anatomy_of(model)
        self.parameters = canonical_parameters(model)
        self.names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.tied = {id(self.parameters[name]) for name in self.anatomy.tied}
        blocks = [name for block in self.anatomy.blocks for name in block]
        self.in_blocks = {id(self.parameters[name]) for name in blocks}
        matrices = (self.parameters[name].ndim for name in blocks)
        self.is_compiled = any(map(is_compiled, model.modules()))
        # in a transformer all layers see the same positions
        self.is_convolutional = not self.is_compiled and max(matrices, default=0) > 2
        hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
        # the output of an embedding requires a gradient that no parameter learns from
        self.marks_inputs = any(getattr(hook, "__name__", "") in _MARKS_INPUTS for hook in hooks)
        self._summary = NameSummary(list(self.parameters))
        self._said: set[str] = set() if not is_silent else {"cut", "lost"}

    def trainable_below(self, stack: Stack) -> set[int]:
        """Ids of what trains and may be below a stack: all but heads, its own and later blocks, and norms."""
        later = self.anatomy.stacks[self.anatomy.stacks.index(stack) :]
        above = {name for each in later for block in each.blocks for name in block}
        above.update(self.anatomy.heads, *(each.final_norms for each in later))
        trainable = (name for name, parameter in self.parameters.items() if parameter.requires_grad)
        return {id(self.parameters[name]) for name in trainable if name not in above}

    def num_frozen(self, stack: Stack) -> int:
        """The number of leading blocks of a stack in which nothing trains."""
        return frozen_prefix(stack, self.parameters)

    def tell_of_cut(self, stack: Stack) -> None:
        """Log once that a tied weight learns through the head alone."""
        if "cut" in self._said:
            return
        self._said.add("cut")
        log.info(
            "the backward pass ends above the frozen %s: %s learns through the head it is tied to, not "
            "through them (cut_gradient='never' lets it)",
            self._prefix(stack),
            ", ".join(self.anatomy.tied),
        )

    @property
    def has_told_of_loss(self) -> bool:
        """Whether the warning about a gradient through a frozen prefix is already out."""
        return "lost" in self._said

    def count_uses(self) -> None:
        """Count the positions at which the weights of a convnet are used, until the next graph is seen."""
        if self.is_convolutional and not self.has_told_of_loss and self._uses is None:
            self._uses = WeightUses(self._model)

    def stop_counting(self) -> None:
        """No loss was seen."""
        if self._uses is not None and not self.has_told_of_loss:
            self._uses.remove()
            self._uses = None

    def warn_of_loss(self, stack: Stack, block: nn.Module, why: str, way_out: str, hidden: Tensor) -> None:
        """Warn once what a gradient through a frozen prefix costs, when it arrives at the prefix's input."""
        if self.has_told_of_loss:
            return
        self._said.add("lost")

        def tell(_: Tensor) -> None:
            handle.remove()
            self._warn(stack, block, why, way_out)

        handle: RemovableHandle = hidden.register_hook(tell)  # type: ignore[no-untyped-call]

    def _warn(self, stack: Stack, block: nn.Module, why: str, way_out: str) -> None:
        uses = None
        if self._uses is not None:
            self._uses.remove()
            uses, self._uses = self._uses.positions, None
        said_by = self._model.modules() if not hasattr(block, "gradient_checkpointing") else [block]
        # the model says it where blocks do not: transformers 4.52
        is_checkpointed = any(getattr(each, "gradient_checkpointing", False) is True for each in said_by)
        log.warning(
            "The gradient flows through the frozen %s because %s. That is about %.0f %% of the "
            "floating-point operations of a step. %s",
            self._prefix(stack),
            why,
            100
            * lost_share(self.anatomy, stack, self.parameters, is_checkpointed=is_checkpointed, uses=uses),
            way_out,
        )

    def summary(self, names: Iterable[str]) -> str:
        """Names, compressed to a short phrase."""
        return self._summary.compress(names)

    def _prefix(self, stack: Stack) -> str:
        blocks = frozen_from(self.anatomy, stack, self.parameters)
        return self.summary(name for block in blocks for name in block)
