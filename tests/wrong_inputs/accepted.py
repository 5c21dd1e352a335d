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
Entry = tuple[str, str, str, str]
ACCEPTED: list[Entry] = [
    ("*", "seed", "zero|nothing", "every whole number is a seed; none means 0"),
    ("*", "generation_seed", "zero", "every whole number is a seed"),
    ("*", "num_workers", "zero", "no worker: the process loads by itself"),
    ("GPTConfig", "ignore_index", "huge", "any number marks targets without a loss"),
    ("TargetSmoothingModifier", "padding_token", "huge", "a token that never comes: none is padding"),
    ("Freezer", "rows", "huge", "set-up says how many rows there are"),
    ("PrefixCache", "max_gb", "huge", "as much as the disk holds"),
    ("CausalLMModule|GPTModule", "temperature", "huge", "every token is as likely as any other"),
    ("GradualUnfreezing", "lr_decay", "huge", "the lower layers stand still"),
    ("Misa", "sharpness", "huge", "the most important units only"),
    (
        "AdaptiveScheduler|CausalLMModule|GPTModule|TransferLearningScheduler|WarmupOnlyScheduler|fine_tune",
        "initial_lr|min_lr|learning_rate|head_learning_rate|base_lr|weight_decay",
        "huge",
        "a rate is the user's choice: no limit holds for every optimizer and model",
    ),
    ("Freezer", "unfreeze_lr|unfreeze_lr_factor", "huge", "a rate, as that of the optimizer"),
    ("Freezer", "unfreeze_weight_decay", "huge", "as that of the optimizer, which takes any"),
    ("fine_tune", "lr_mult|div", "huge", "the rates that they divide begin near 0"),
    ("GPTConfig", "unfreeze_lr_multiplier", "huge", "a rate, as that of the optimizer"),
    (
        "TransferLearningScheduler",
        "head_lr_multiplier|unfreeze_lr_drop",
        "huge",
        "times a rate, which may be as small",
    ),
    ("EntropyModifier", "weight", "huge", "the loss may be scaled down elsewhere"),
    ("SequenceVarianceModifier", "alpha|scale", "huge", "times a variance, which may be as small"),
    ("MaskRatioModifier", "power|max_weight", "huge", "`max_weight` or the loss bounds the product"),
    (
        "EntropyModifier|MaskRatioModifier|SequenceCorrelationModifier|SequenceVarianceModifier",
        "eps",
        "huge",
        "added below a fraction, which it may outweigh",
    ),
    ("*", "every_n_steps|warmup_steps", "nothing", "null stands for the default in YAML"),
    ("*", "unfreeze_embeddings_at|unfreeze_embeddings|unfreeze_at_iteration", "zero", "from the start"),
    ("*", "until_step|until_epoch|from_step|from_epoch", "zero", "counts from 0: never frozen, or at once"),
    ("*", "*warmup*|hold_iters|feature_extraction_iters|num_timed", "zero", "none of it"),
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
    ("*", "tokenizer", "text*|*word", "a path, which is looked up when the tokenizer is loaded"),
    ("*", "source", "text*|*word|empty text", "where the data are is looked up when they are loaded"),
    ("compile_blocks", "backend", "a class", "any callable is a backend"),
    ("*", "init_from_checkpoint", "empty text", "as null: from scratch"),
]


def entry_for(row: Row) -> Entry | None:
    """The entry by which a row may be accepted; None where it has to be refused."""
    for entry in ACCEPTED:
        given = zip((row.name, row.argument, row.kind), entry[:3], strict=True)
        if all(any(fnmatchcase(value, each) for each in patterns.split("|")) for value, patterns in given):
            return entry
    return None
