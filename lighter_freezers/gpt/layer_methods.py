"""The methods of a GPT that freeze, thaw and count layers and set LoRA ranks; other rooms do the work."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from lighter_freezers.gpt.config import GPTConfig, ModelMode
from lighter_freezers.selection.element_counts import num_elements

if TYPE_CHECKING:
    from lighter_freezers.lora.rank_change import OnZero

__all__ = ["LayerMethods"]

EMBEDDINGS = ("wte", "wpe")


class LayerMethods(nn.Module):
    """Mixin for a model with a `config` and a trunk called `transformer`."""

    config: GPTConfig
    transformer: nn.Module
    is_thawed_by_caller = False  # whether the module around it sees to `unfreeze_at_iteration`
    num_passes = 0  # forward passes in training, counted while `unfreeze_at_iteration` is still to come

    def _count_pass(self) -> None:
        """Warn when the trunk should train by now, but nothing has thawed it."""
        thaw_at = self.config.unfreeze_at_iteration
        if thaw_at is None or self.is_thawed_by_caller or self.num_passes > thaw_at:
            return
        self.num_passes += 1
        if self.num_passes > thaw_at and self.get_frozen_status():
            warnings.warn(
                f"unfreeze_at_iteration={thaw_at}: that many passes are over, and nothing has thawed the "
                "trunk. A model does not count steps: train it in a GPTModule, or call "
                "unfreeze_transformer_weights() at that step. To leave it to a Freezer(name_starts_with="
                "'network.transformer.', until_step=...), remove both freeze_transformer and this.",
                stacklevel=3,
            )

    def freeze_layer(self, layer: str) -> int:
        """Hold a layer frozen until `unfreeze_layer`; it composes with every Freezer.

        Args:
            layer: `attn.N`, `mlp.N`, `ln_1.N`, `ln_2.N`, `wte`, `wpe`, `ln_f`, the head as `lm_head`,
                `classifier_head` or `sequence_head`, or `cls_embedding`; N from 0. With tied weights `wte`
                and `lm_head` are one parameter.

        Returns:
            The number of elements that trained until now.

        Raises:
            ValueError: There is no such layer; the message lists the layers.
        """
        from lighter_freezers.engine import ledger
        from lighter_freezers.selection import layer_names

        parameters = layer_names.parameters_of_layer(self, layer)
        return num_elements(ledger.hold(parameters.values(), "freeze_layer"))

    def unfreeze_layer(self, layer: str) -> int:
        """Let a layer train, also one that the user froze; what a Freezer holds trains once it is released.

        Args:
            layer: As for `freeze_layer`.

        Returns:
            The number of elements that train from now on.

        Raises:
            ValueError: There is no such layer; the message lists the layers.
        """
        from lighter_freezers.selection import layer_names

        return _let_train(layer_names.parameters_of_layer(self, layer).values())

    def freeze_transformer_weights(self) -> int:
        """Hold the trunk frozen until `unfreeze_transformer_weights`; the head and [CLS] keep training.

        A tied `lm_head` is part of the trunk: it is frozen too, with a warning. The embedding of [CLS] enters
        before the first block, so while it trains, gradients flow through the whole frozen trunk.

        Returns:
            The number of elements that trained until now.
        """
        from lighter_freezers.engine import ledger

        if self.config.mode == ModelMode.LANGUAGE_MODEL and self.config.tie_weights:
            warnings.warn(
                "lm_head is tied to transformer.wte, so it is frozen with the trunk and nothing of the model "
                "trains. For a head of its own, set tie_weights: false.",
                stacklevel=2,
            )
        return num_elements(ledger.hold(self.transformer.parameters(), "freeze_transformer"))

    def unfreeze_transformer_weights(self) -> int:
        """Let the whole trunk train, also layers the user froze; what a Freezer holds trains once released.

        Returns:
            The number of elements that train from now on.
        """
        return _let_train(self.transformer.parameters())

    def get_frozen_status(self) -> bool:
        """Whether nothing of the trunk trains."""
        return not any(parameter.requires_grad for parameter in self.transformer.parameters())

    def get_detailed_param_count(self) -> dict[str, dict[str, int]]:
        """Count elements by component.

        Returns:
            Component (`wte`, `attn.0`, ..., in model order, then `total`) -> `total`, `trainable` and
            `frozen` elements. A tied `lm_head` is counted once, under `wte`.
        """
        from lighter_freezers.selection import layer_names

        parameters = dict(self.named_parameters())
        counts = {}
        for component, names in layer_names.components(self).items():
            counts[component] = _count([parameters[name] for name in names])
        return {**counts, "total": _count(list(self.parameters()))}

    def set_layer_lora_rank(self, layer: str, rank: int, *, on_zero: "OnZero" = "merge") -> None:
        """Set the LoRA rank of a layer, which gets LoRA if it has none; rank 0 merges and removes it.

        An existing optimizer does not contain the new factors. In a run, `LayerOperations` and
        `LoraRankScheduler` take care of that and of the optimizer's state.

        Args:
            layer: `attn.N`, `mlp.N` or `wte`, N from 0.
            rank: Its new rank, from 0 to the smaller side of its weight.
            on_zero: What rank 0 means: `merge`, `drop` the update, or `freeze` it. A tied `wte` cannot merge.

        Raises:
            TypeError: The rank is not a whole number.
            ValueError: There is no such layer, or it cannot have this rank.
            RuntimeError: Rank 0 would merge into a weight that is tied or quantised.
        """
        from lighter_freezers.lora.set_rank import set_layer_lora_rank

        set_layer_lora_rank(self, layer, rank, on_zero=on_zero)

    def resize_lora_rank(self, rank: int) -> None:
        """Deprecated: set the rank of every attention. Call `set_layer_lora_rank` for each."""
        _deprecate("resize_lora_rank(rank)", 'set_layer_lora_rank("attn.N", rank) for each layer')
        for index in range(self.config.n_layer):
            self.set_layer_lora_rank(f"attn.{index}", rank)

    def resize_embedding_rank(self, rank: int) -> None:
        """Deprecated: set the rank of the token embedding. Call `set_layer_lora_rank`."""
        _deprecate("resize_embedding_rank(rank)", 'set_layer_lora_rank("wte", rank)')
        self.set_layer_lora_rank("wte", rank)

    def set_embedding_finetune_mode(self, enabled: bool) -> None:
        """Deprecated: freeze all blocks and the final norm, or let them train again."""
        _deprecate("set_embedding_finetune_mode(enabled)", "freeze_layer and unfreeze_layer")
        switch = self.freeze_layer if enabled else self.unfreeze_layer
        for layer in (*(f"block.{index}" for index in range(self.config.n_layer)), "ln_f"):
            switch(layer)

    def set_embedding_freeze_mode(self, enabled: bool) -> None:
        """Deprecated: freeze the embeddings, with a tied head, or let them train again."""
        _deprecate("set_embedding_freeze_mode(enabled)", "freeze_layer and unfreeze_layer")
        switch = self.freeze_layer if enabled else self.unfreeze_layer
        for layer in EMBEDDINGS[: 1 if self.config.use_rotary_embeddings else 2]:
            switch(layer)


def _let_train(parameters: Iterable[nn.Parameter]) -> int:
    """Undo both kinds of freezing by this model's methods."""
    from lighter_freezers.engine import ledger

    parameters = list(parameters)
    holders = ("freeze_layer", "freeze_transformer")
    return sum(num_elements(ledger.thaw(parameters, holder)) for holder in holders)


def _count(parameters: list[nn.Parameter]) -> dict[str, int]:
    trainable = num_elements(parameter for parameter in parameters if parameter.requires_grad)
    total = num_elements(parameters)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}


def _deprecate(call: str, replacement: str) -> None:
    warnings.warn(f"{call} is deprecated: use {replacement}.", DeprecationWarning, stacklevel=3)
