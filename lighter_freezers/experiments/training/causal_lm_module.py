"""A causal language model as a LightningModule for `pytorch_lightning`, which lighter requires."""

from pytorch_lightning import LightningModule

from lighter_freezers.experiments.training.causal_lm_training import CausalLMTraining

__all__ = ["CausalLMModule"]


class CausalLMModule(CausalLMTraining, LightningModule):
    """Fine-tunes a causal language model of transformers on prompts and answers, with LoRA or all weights.

    | call | what trains |
    |---|---|
    | `CausalLMModule("TinyLlama/...", lora={"r": 8, "target": "attention_only"})` | LoRA on queries, values |
    | `CausalLMModule("path/to/model", lora={"r": 8, "target_modules": ["down_proj"]})` | LoRA on these |
    | `CausalLMModule("path/to/model")` | every weight |
    | `CausalLMModule(network=LlamaForCausalLM(config))` | every weight, from scratch |

    Batches for training and validation have `input_ids`, `attention_mask` and `labels`, (B, T), as in
    transformers: labels are not shifted, and -100 where there is no loss, on prompts and padding. Batches for
    test and prediction have `input_ids` and `attention_mask` of prompts, padded on the left, and for test
    `prompts` and `references` as text. `GenerationDataModule` makes both.

    It logs `train/loss`, of the answers of a batch; `val/loss` and `val/perplexity`, over all answer tokens
    of all batches and ranks; `model/trainable_parameters` and `model/parameters`, once; and in a test, where
    the model answers every prompt, `test/...` for each figure of the metrics, such as `test/bleu_4`, with
    `test/perplexity` where the batches have the correct `answers`. Answers, settings and versions go to
    `evaluation_results.json` in the folder of the run's logger, or in the Trainer's `default_root_dir`;
    existing files are not overwritten. `predict` returns `prompts` and `predictions` of each batch.

    Every callback of this package works on it. Names begin with `network.`, and the short names of layers
    (`attn.3`, `mlp.*`) work in any architecture.

    `lighter_freezers.lightning.CausalLMModule` is the same for `lightning.pytorch`.

    Args:
        model: A folder with a model of transformers, or its id on the Hugging Face hub.
        network: Instead of `model` an existing model, with or without a PEFT adapter.
        lora: The arguments of `apply_lora`: `r`, `lora_alpha`, `lora_dropout`, ..., and `target_modules` or
            `target`, one of `attention_only`, `mlp_only`, `both` and `all`. The base is frozen then. None for
            no LoRA.
        dtype: Of the weights of `model` in memory: `float32`, `bfloat16`, `float16`, or `auto` for the saved
            dtype. LoRA factors are always in float32.
        load_options: Further arguments of transformers' `from_pretrained`, such as `attn_implementation`.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more work.
            Blocks below everything that trains are not recomputed.
        optimizer: An optimizer as YAML builds it. None for AdamW, with the four values below, over all that
            trains now or once a callback releases it.
        scheduler: An LR scheduler of that optimizer, or Lightning's dictionary with one. None for a constant
            rate.
        learning_rate: For AdamW, if no optimizer is given.
        weight_decay: The same; matrices decay, vectors do not.
        lr_schedule: How the rate decays to 0 at the end of the run: `cosine`, `linear`, or `constant` for no
            decay.
        warmup_steps: Optimizer steps over which it rises first.
        scheduler_interval: Whether `scheduler` advances after each `step` or each `epoch`.
        scheduler_monitor: The metric for a `ReduceLROnPlateau`. None for other schedulers.
        metrics: Names of metrics for tests: `bleu`, `rouge`, `meteor`, `exact_match`, `sql_match`,
            `accuracy`. None for those of the data's task.
        tokenizer: A tokenizer of transformers, or its path. None for that of `model`. It is only needed for
            data that cannot decode, and for the final model.
        max_new_tokens: Tokens of an answer at most. None for the value of the data's task, else 128.
        temperature: Of the sampling of answers; 0 always takes the most likely token.
        top_p: Sample among the most likely tokens that together reach this probability. None for all.
        generation_seed: Of the sampling: the same batch gets the same text every time.
        save_frozen_weights: Whether checkpoints include the frozen base. False makes them as small as what
            trains; loading them then requires the same `model` or `network`.
        save_final_model: Write `final_model/` next to the logger's files when training ends: the adapter,
            which stock PEFT loads, or without LoRA the whole model; with the tokenizer.

    Raises:
        ImportError: transformers is not installed.
        TypeError: An argument has the wrong type.
        ValueError: A value is out of range, or two arguments contradict each other.

    Example:
        ```yaml
        model:
          _target_: lighter_freezers.CausalLMModule
          model: TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T
          dtype: bfloat16
          lora: {r: 8, lora_alpha: 32, lora_dropout: 0.1, target: both}
          learning_rate: 2.0e-4
          gradient_checkpointing: true
          save_final_model: true
        ```
    """
