"""Rows of the table that are accepted after all, each with its reason, and other names of arguments."""

from fnmatch import fnmatchcase

from tests.wrong_inputs.generator import Row

# What an error may call an argument instead: what the user wrote goes there as it is.
NAMES = {
    ("GPT", "config"): "GPTConfig",
    ("setup_lp_lora_style", "lora"): "config",
    ("LoraPhases", "strategy"): "phases",
}

# callable, argument, kinds, reason; `*` and `?` as in file names
ACCEPTED: list[tuple[str, str, str, str]] = [
    ("*", "seed", "zero|huge|nothing", "every whole number is a seed; none means 0"),
    ("*", "generation_seed", "zero|huge", "every whole number is a seed"),
    ("*", "num_workers", "zero|huge", "no worker: the process loads by itself; the system limits how many"),
    (
        "*",
        "*_steps|*_iters|*_epoch|*_step|*_iteration|*_epochs|*_end",
        "huge",
        "never reached",
    ),
    ("*", "*", "huge", "large is no fault: memory, the data or the length of the run set the limit"),
    ("*", "every_n_steps|warmup_steps", "nothing", "null stands for the default in YAML"),
    ("*", "unfreeze_embeddings_at|unfreeze_embeddings|unfreeze_at_iteration", "zero", "from the start"),
    ("*", "until_step|until_epoch|from_step|from_epoch", "zero", "counts from 0: never frozen, or at once"),
    ("*", "*warmup*|hold_iters|feature_extraction_iters|num_timed", "zero", "none of it"),
    ("*", "max_iters", "zero", "null and 0 mean no end"),
    ("*", "*weight_decay|dropout|factor|threshold|smoothing|sharpness", "zero", "off"),
    (
        "*",
        "percentile|min_lr|min_lr_ratio|min_weight|weight|freeze_ratio|t0",
        "zero",
        "the lowest there is",
    ),
    ("*", "temperature", "zero", "greedy"),
    ("Freezer", "rows", "zero|negative", "row numbers, from the end if negative"),
    ("*", "n", "zero", "no layer"),
    ("*", "r|rank", "zero", "no LoRA there"),
    ("*", "optimizer", "zero", "the first one"),
    ("*", "cls_token_id|eos_token_id", "zero", "a token, counted from 0"),
    (
        "GPTConfig",
        "ignore_index",
        "negative|zero",
        "any number marks targets without a loss",
    ),
    ("*", "padding_token", "negative|zero", "targets of no token are often negative"),
    (
        "*",
        "*names*|*patterns*|*starts_with",
        "an empty list",
        "names nothing, as a config to be filled",
    ),
    ("*", "blocks|head|embeddings", "an empty list", "says nothing: the model is asked"),
    ("*", "modifiers", "an empty list", "a pipeline that changes nothing"),
    ("*", "special_tokens", "an empty list|empty text", "no token is special"),
    ("*", "metrics", "an empty list", "no metric"),
    ("*", "optimizers", "an empty list", "no optimizer knows the layer"),
    ("GPT", "config", "an empty mapping", "every field has a default"),
    ("*", "load_options|generation", "an empty mapping", "every option has a default"),
    ("CausalLMModule", "lora", "*mapping*", "checked with the model that it is for, once that is loaded"),
    (
        "GPTModule|create_loss_modifier_pipeline",
        "*",
        "*mapping*",
        "other keys of a config are ignored",
    ),
    ("*", "tokenizer", "*", "a path or any object that encodes; the first text that it encodes says more"),
    ("*", "source", "text*|*word|empty text", "where the data are is looked up when they are loaded"),
    (
        "*",
        "batch|example|train_dataloaders|val_dataloaders|datamodule",
        "*",
        "the model knows what it takes",
    ),
    ("compile_blocks", "backend", "a class", "any callable is a backend"),
    ("resize_lora_layer", "statistics", "*", "only `kfac` reads it"),
    ("*", "init_from_checkpoint", "empty text", "as null: from scratch"),
    ("PlotsAtEnd", "dirpath", "empty text", "the working folder"),
]


def reason_for(row: Row) -> str | None:
    """Why a row may be accepted; None where it has to be refused."""
    for name, argument, kinds, reason in ACCEPTED:
        given = ((row.name, name), (row.argument, argument), (row.kind, kinds))
        if all(any(fnmatchcase(value, each) for each in patterns.split("|")) for value, patterns in given):
            return reason
    return None
