"""The methods of a GPT that set LoRA ranks; `lighter_freezers.lora` does the work."""

import warnings
from typing import TYPE_CHECKING

from torch import nn

from lighter_freezers.gpt.config import GPTConfig
from lighter_freezers.gpt.freezing_methods import FreezingMethods

if TYPE_CHECKING:
    from lighter_freezers.lora.rank_change import OnZero

__all__ = ["LoraMethods"]

EMBEDDINGS = ("wte", "wpe")


class LoraMethods(FreezingMethods):
    """Mixin for a model with a `config` and a trunk called `transformer`."""

    config: GPTConfig
    transformer: nn.Module

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


def _deprecate(call: str, replacement: str) -> None:
    warnings.warn(f"{call} is deprecated: use {replacement}.", DeprecationWarning, stacklevel=3)
