"""The GPT as a LightningModule for `pytorch_lightning`, which lighter asks for."""

from pytorch_lightning import LightningModule

from lighter_freezers.experiments.training.gpt_training import GPTTraining

__all__ = ["GPTModule"]


class GPTModule(GPTTraining, LightningModule):
    """Trains, evaluates and runs a GPT with `pytorch_lightning`, in the mode of its config.

    Batches are dictionaries, as the data modules give them: `input_ids` (B, T), `targets`, `attention_mask`
    (B, T) if a row is padded, and for a language model `num_bytes` (B), the bytes of text that the targets of
    a row stand for.

    | mode | logged as `val/...` and `test/...` | `predict` gives for a batch |
    |---|---|---|
    | `language_model` | `loss`, `perplexity`, `bits_per_byte` | `tokens` and `text`, or tokens |
    | `token_classifier` | `loss`, `accuracy`, `macro_f1`, `f1/CLASS` | a list of pairs for each row |
    | `sequence_scorer` | `loss`, which is `mse`, `r2`, `pearson` | a score for each row, (B) |

    These figures are over all batches and ranks; `TokenFigures` and `ScoreFigures` say what becomes of a
    class that does not occur, and of targets that do not vary. `train/loss` is that of the batch, with the
    loss modifiers, whose own figures are `train/modifier/...`; `val/loss` and `test/loss` are without them.

    The pairs are (token, class). `predict` names them, or gives generated text, where the data module can
    decode; with a DataLoader alone it gives their numbers.

    A GPT with `freeze_transformer` and `unfreeze_at_iteration` is thawed at that optimizer step, by a Freezer
    that this module brings to the Trainer: with `unfreeze_lr_multiplier` times the rate that the trunk would
    have, whatever the scheduler does, and in a resumed run too. A subclass that overrides
    `configure_callbacks` or `setup` calls the one above.

    `lighter_freezers.lightning.GPTModule` is the same for `lightning.pytorch`.

    Args:
        network: The GPT.
        optimizer: An optimizer over `network.parameters()`, as YAML builds it. None for AdamW with the three
            values below.
        scheduler: An LR scheduler of that optimizer, as YAML builds it, or Lightning's dictionary with one
            under `scheduler`. None for a constant rate.
        loss_modifiers: A `LossModifierPipeline`, or the keys of `create_loss_modifier_pipeline`. They act in
            training only. None for the plain loss.
        learning_rate: For AdamW, if no optimizer is given.
        head_learning_rate: The same for the head, and a scorer's [CLS] embedding. None: as the rest.
        weight_decay: The same; matrices decay, vectors do not.
        scheduler_interval: Whether the scheduler goes on after each `step` or each `epoch`; a
            `ReduceLROnPlateau` of a validation metric wants `epoch`.
        scheduler_monitor: The metric that a `ReduceLROnPlateau` looks at. None for the others.
        max_new_tokens: How many tokens `predict` adds to each sequence; like the next four, for a language
            model.
        temperature: How boldly it draws them; 0 always takes the most likely.
        top_k: Draw among so many of the most likely only. None draws among all.
        top_p: Draw among the most likely that together reach this probability only. None draws among all.
        eos_token_id: The token that ends a text; 0 is `<eos>` in the tokenizers of `TextDataModule`. None
            never ends one.

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
