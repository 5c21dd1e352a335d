"""The GPT as a LightningModule for `pytorch_lightning`, which lighter requires."""

from pytorch_lightning import LightningModule

from lighter_freezers.experiments.training.gpt_training import GPTTraining

__all__ = ["GPTModule"]


class GPTModule(GPTTraining, LightningModule):
    """Trains, evaluates and runs a GPT with `pytorch_lightning`, in the mode of its config.

    Batches are dictionaries, as from the data modules: `input_ids` (B, T), `targets`, `attention_mask` (B, T)
    if a row is padded, and for a language model `num_bytes` (B), the bytes of text in the targets of a row.

    | mode | logged as `val/...` and `test/...` | `predict` returns for a batch |
    |---|---|---|
    | `language_model` | `loss`, `perplexity`, `bits_per_byte` | `tokens` and `text`, or tokens |
    | `token_classifier` | `loss`, `accuracy`, `macro_f1`, `f1/CLASS` | a list of pairs for each row |
    | `sequence_scorer` | `loss`, which is `mse`, `r2`, `pearson` | a score for each row, (B) |

    These figures are over all batches and ranks; see `TokenFigures` for classes that do not occur, and
    `ScoreFigures` for targets that do not vary. `train/loss` is that of the batch, with the loss modifiers,
    whose own metrics are `train/modifier/...`; `val/loss` and `test/loss` are without them.

    The pairs are (token, class). `predict` returns their names, or generated text, where the data module can
    decode; with a DataLoader alone it returns numbers.

    A GPT with `freeze_transformer` and `unfreeze_at_iteration` is thawed at that optimizer step, by a
    freezing rule that this module adds to the Trainer: with `unfreeze_lr_multiplier` times the rate that the
    trunk would have, whatever the scheduler does, and in a resumed run too. A subclass that overrides
    `configure_callbacks` or `setup` has to call `super()`.

    `lighter_freezers.lightning.GPTModule` is the same for `lightning.pytorch`.

    Args:
        network: The GPT.
        optimizer: An optimizer over `network.parameters()`, as YAML builds it. None for AdamW with the three
            values below.
        scheduler: An LR scheduler of that optimizer, as YAML builds it, or Lightning's dictionary with one
            under `scheduler`. None for a constant rate.
        loss_modifiers: A `LossModifierPipeline`, or the keys of `create_loss_modifier_pipeline`. They apply
            in training only. None for the plain loss.
        learning_rate: For AdamW, if no optimizer is given.
        head_learning_rate: The same for the head, and a scorer's [CLS] embedding. None: `learning_rate`.
        weight_decay: The same; matrices decay, vectors do not.
        scheduler_interval: Whether the scheduler advances after each `step` or each `epoch`; a
            `ReduceLROnPlateau` on a validation metric needs `epoch`.
        scheduler_monitor: The metric for a `ReduceLROnPlateau`. None for other schedulers.
        max_new_tokens: How many tokens `predict` adds to each sequence; like the next four, for a language
            model.
        temperature: Of the sampling; 0 always takes the most likely token.
        top_k: Sample among this many most likely tokens. None for all.
        top_p: Sample among the most likely tokens that together reach this probability. None for all.
        eos_token_id: The token that ends a text; 0 is `<eos>` in the tokenizers of `TextDataModule`. None for
            no end.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value is out of range or for another mode, a scheduler comes without its optimizer, or a
            `ReduceLROnPlateau` without its metric.

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
