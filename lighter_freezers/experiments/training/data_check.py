"""Rejects data on which a GPT cannot be trained, before the first batch."""

from lighter_freezers.gpt.config import GPTConfig

__all__ = ["check_data_fits"]


def check_data_fits(config: GPTConfig, datamodule: object) -> None:
    """Check the attributes of a data module; missing ones are not checked.

    Args:
        config: The config of the GPT.
        datamodule: May have `mode`, `vocab_size`, `num_token_classes`, `class_names` and `cls_token_id`. None
            where the Trainer was given data loaders.

    Raises:
        ValueError: They are for another mode, have more tokens, other classes or another [CLS] token.
    """
    mode = getattr(datamodule, "mode", config.mode)
    if mode != config.mode:
        raise ValueError(
            f"The data of {type(datamodule).__name__} are for mode: {mode}, but the model's mode is "
            f"{config.mode}. Set the GPT's mode to {mode}, or choose other data."
        )
    num_tokens = getattr(datamodule, "vocab_size", None)
    if num_tokens is not None and num_tokens > config.vocab_size:
        raise ValueError(
            f"The data have {num_tokens} tokens, but the model has vocab_size={config.vocab_size}. "
            f"Set the GPT's vocab_size to {num_tokens} or more, or the data's to less."
        )
    if config.num_token_classes is not None:
        _check_classes(config.num_token_classes, datamodule)
    cls_token_id = getattr(datamodule, "cls_token_id", None)
    if config.cls_token_id is not None and cls_token_id not in (None, config.cls_token_id):
        raise ValueError(
            f"The data's sequences begin with the token {cls_token_id}, but the model has cls_token_id="
            f"{config.cls_token_id}. Set the GPT's cls_token_id to {cls_token_id} and its vocab_size to "
            f"{max(num_tokens or 0, cls_token_id + 1)} or more, or the data's cls_token_id to "
            f"{config.cls_token_id}."
        )


def _check_classes(num_token_classes: int, datamodule: object) -> None:
    num_classes = getattr(datamodule, "num_token_classes", None)
    if num_classes in (None, num_token_classes):
        return
    names = getattr(datamodule, "class_names", None)
    shown = f" ({', '.join(map(str, names))})" if names else ""
    raise ValueError(
        f"The data have {num_classes} classes{shown}, but the model has num_token_classes="
        f"{num_token_classes}. Set the GPT's num_token_classes to {num_classes}."
    )
