"""Thaws a model from the head downwards, for a custom training loop that counts the epochs.

In a Trainer the callback `GradualUnfreezing` does this; both share the schedule in `thaw_pace.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers._log import log
from lighter_freezers.arguments import at_least, checked, count
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.optimizer_groups import add_missing, parameters_in
from lighter_freezers.engine.effects.order_check import check_order
from lighter_freezers.engine.trainer_like import SchedulerLike
from lighter_freezers.layers.changes import say
from lighter_freezers.layers.said import Said, anatomy_said
from lighter_freezers.layers.thaw_pace import num_unfrozen_layers
from lighter_freezers.selection.element_counts import num_elements
from lighter_freezers.selection.names import canonical_parameters

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GradualUnfreezer"]


class GradualUnfreezer:
    """Thaws layers from the head downwards: the head alone in the first epoch, all layers in the last.

    | call | epoch 1 | epoch 5 | epoch 10 |
    |---|---|---|---|
    | `GradualUnfreezer(model, 10)` | head | head, half of the layers | head, all layers |
    | `..., unfreeze_embeddings_at=7` | the same | the same | embeddings too, from `step(7)` on |
    | `..., freeze_embeddings=False` | head, embeddings | and half of the layers | everything |

    The norm after the last layer trains with that layer. The head's weight trains from the start, also where
    it is tied to an embedding. What is neither head nor layer nor embedding thaws with the last of the
    layers. A model without a head starts with its last layer.

    Only what trains when the object is created is frozen and thawed: the base of a model with LoRA stays
    frozen. What an earlier `GradualUnfreezer` of the model left frozen counts as trainable. It holds nothing:
    call `unfreeze_model` to end it at any time. An optimizer may be created before, from all parameters: it
    skips those without gradients. One created later from the parameters that train receives the others in
    `step(epoch, optimizer)`.

    The idea is from ULMFiT, https://arxiv.org/abs/1801.06146.

    Args:
        model: Any module with blocks. A decoder thaws before its encoder.
        total_epochs: Epochs of the schedule, at least 1.
        unfreeze_embeddings_at: The epoch in which the embeddings thaw, counted from 0. None for never.
        freeze_embeddings: False to let the embeddings train all the time.
        verbose: Whether each change is logged.
        **said: `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Raises:
        TypeError: A number has another type.
        ValueError: The model has no blocks, nothing in it trains, or the arguments contradict each other.

    Example:
        ```python
        import torch
        from lighter_freezers import GPT, GradualUnfreezer

        model = GPT({"vocab_size": 16, "block_size": 8, "n_layer": 4, "n_head": 2, "n_embd": 8})
        optimizer = torch.optim.AdamW(model.parameters())
        unfreezer = GradualUnfreezer(model, total_epochs=10)
        for epoch in range(10):
            unfreezer.step(epoch)
            ...  # train for one epoch
        assert unfreezer.get_current_trainable_layers() == [0, 1, 2, 3]
        ```
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        total_epochs: int,
        unfreeze_embeddings_at: int | None = None,
        freeze_embeddings: bool = True,
        verbose: bool = True,
        **said: Unpack[Said],
    ) -> None:
        self._total_epochs = at_least("total_epochs", total_epochs, 1)
        self._embeddings_epoch = count("unfreeze_embeddings_at", unfreeze_embeddings_at)
        self._freeze_embeddings = freeze_embeddings
        if self._embeddings_epoch is not None and not freeze_embeddings:
            raise ValueError(
                "unfreeze_embeddings_at says when frozen embeddings thaw, but freeze_embeddings is False. "
                "Leave one of the two out."
            )
        self._verbose = verbose
        self._model = model
        if said.get("tower") is not None:
            raise ValueError("GradualUnfreezer thaws towers side by side: GradualUnfreezing takes a tower.")
        self._anatomy = anatomy_said(model, said)
        self._anatomy.blocks_for("GradualUnfreezer")
        check_order(model, self._anatomy)
        named = canonical_parameters(model)
        self._trained = {name for name in named if not ledger.is_user_frozen(named[name])}
        self._layers = [i for i, block in enumerate(self._anatomy.levels) if self._trained & {*block}]
        if not self._layers:
            raise ValueError(
                "No layer of the model trains, so none can thaw. Call unfreeze_model(model) first, or create "
                "the GradualUnfreezer before you freeze."
            )
        self.step(0)

    def step(
        self, epoch: int, optimizer: Optimizer | None = None, schedulers: Sequence[SchedulerLike] = ()
    ) -> int:
        """Thaw what trains in an epoch, and freeze the rest. Call it before the epoch.

        Args:
            epoch: Counted from 0. From `total_epochs - 1` on all layers train.
            optimizer: Receives a parameter group with what trains and is in none of its groups, with the
                options of the group of the nearest name. None where it was created from all parameters.
            schedulers: LR schedulers of the optimizer; they then control such a group too.

        Returns:
            The number of elements that train from now on.
        """
        at_least("epoch", epoch)
        named = canonical_parameters(self._model)
        training = self._trained & self._names_of_epoch(epoch)
        frozen = ledger.freeze([named[name] for name in self._trained - training], is_left=True)
        thawed = num_elements(ledger.thaw([named[name] for name in training], "GradualUnfreezer"))
        if optimizer is not None:
            _complete(optimizer, {name: named[name] for name in named if name in training}, named, schedulers)
        if self._verbose and (frozen or thawed):
            self._tell(epoch)
        return thawed

    def get_current_trainable_layers(self) -> list[int]:
        """The indices of the layers in which something trains now, counted from 0 at the input."""
        named = canonical_parameters(self._model)
        blocks = self._anatomy.levels
        return [i for i, block in enumerate(blocks) if any(named[name].requires_grad for name in block)]

    def _names_of_epoch(self, epoch: int) -> set[str]:
        anatomy = self._anatomy
        num_layers = num_unfrozen_layers(epoch, len(self._layers), self._total_epochs)
        names = {*anatomy.head_weights}
        if not self._freeze_embeddings or (
            self._embeddings_epoch is not None and epoch >= self._embeddings_epoch
        ):
            names.update(anatomy.embeddings)
        if not num_layers and not self._trained & {*anatomy.head_weights}:
            num_layers = 1
        if num_layers:
            names.update(anatomy.top(len(anatomy.levels) - self._layers[-num_layers]))
        if num_layers == len(self._layers):
            names.update(anatomy.others)
        return names

    def _tell(self, epoch: int) -> None:
        layers = self.get_current_trainable_layers()
        head = "the head and " if self._trained & {*self._anatomy.head_weights} else ""
        which = f"{head}{len(layers)} of {len(self._anatomy.levels)} layers train"
        which = which if layers else "only the head trains"
        number = num_elements(p for p in self._model.parameters() if p.requires_grad)
        say(f"GradualUnfreezer, epoch {epoch + 1} of {self._total_epochs}: {which}, {number:,} parameters.")


def _complete(
    optimizer: Optimizer,
    training: Mapping[str, Parameter],
    named: Mapping[str, Parameter],
    schedulers: Sequence[SchedulerLike],
) -> None:
    """Add what trains and is not in the optimizer to a new group."""
    known = parameters_in([optimizer])
    missing = {name: parameter for name, parameter in training.items() if id(parameter) not in known}
    if missing:
        names = {id(parameter): name for name, parameter in named.items()}
        add_missing(missing, names, [optimizer], schedulers)
        log.info("GradualUnfreezer: %d tensors were added to the optimizer.", len(missing))
