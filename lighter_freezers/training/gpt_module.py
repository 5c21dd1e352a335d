"""The GPT as a LightningModule for `pytorch_lightning`, which lighter asks for."""

from pytorch_lightning import LightningModule

from lighter_freezers.training._language_modelling import LanguageModelling

__all__ = ["GPTModule"]


class GPTModule(LanguageModelling, LightningModule):
    """Trains a GPT as a language model with `pytorch_lightning`.

    Arguments and logged keys are those of `LanguageModelling`.
    `lighter_freezers.lightning.GPTModule` is the same for `lightning.pytorch`.

    Example:
        ```yaml
        model:
          _target_: lighter_freezers.GPTModule
          network:
            _target_: lighter_freezers.GPT
            config: {vocab_size: 1024, block_size: 128, n_layer: 4, n_head: 4, n_embd: 128}
          optimizer:
            _target_: torch.optim.AdamW
            params: "$@model::network.parameters()"
            lr: 1.0e-3
        ```
    """
