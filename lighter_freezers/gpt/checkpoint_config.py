"""The GPTConfig that a checkpoint needs: from its shapes, and from the config stored with the weights."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from lighter_freezers.gpt.checkpoint_names import HEAD, POSITIONS, TOKENS, is_of_trunk
from lighter_freezers.gpt.config import GPTConfig

__all__ = [
    "INVISIBLE",
    "config_of_model_args",
    "config_of_transformers",
    "needed_config",
    "needs_in_words",
    "unmet_needs",
]

BLOCK = re.compile(r"transformer\.h\.(\d+)\.")
STATED = {
    **dict.fromkeys(("n_layer", "n_head", "n_embd", "vocab_size", "block_size"), int),
    **dict.fromkeys(("bias", "use_rotary_embeddings", "exact_gelu", "tie_weights"), bool),
}
INVISIBLE = ("n_head", "exact_gelu")  # shapes do not show them
TANH_GELUS, EXACT_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu"
COMPUTED_ALIKE: dict[str, tuple[object, ...]] = {  # values in a GPT-2's config.json that this GPT supports
    "model_type": ("gpt2",),
    "activation_function": (*TANH_GELUS, EXACT_GELU),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def config_of_model_args(model_args: Mapping[str, object]) -> dict[str, int | bool]:
    """The values of nanoGPT's `model_args` under `GPTConfig`'s names; others are left out."""
    stated = {name: model_args.get(name) for name in STATED}
    return {
        name: value
        for name, value in stated.items()
        if isinstance(value, int) and type(value) is STATED[name]
    }


# Any: a value is only compared with those that this GPT can have.
def config_of_transformers(config: Mapping[str, Any], source: str) -> dict[str, int | bool]:
    """The values of a GPT-2's `config.json` under `GPTConfig`'s names.

    Args:
        config: Its content.
        source: Its location, for messages.

    Raises:
        ValueError: The model computes something that a `GPT` does not.
    """
    others = [name for name, alike in COMPUTED_ALIKE.items() if config.get(name, alike[0]) not in alike]
    if config.get("n_inner") not in (None, 4 * config.get("n_embd", 0)):
        others.append("n_inner")
    if others:
        values = ", ".join(f"{name}={config[name]!r}" for name in others)
        raise ValueError(
            f"'{source}' describes a model that this GPT cannot be, by {values}. It can be a GPT-2 with "
            "activation_function gelu_new or gelu, n_inner null and the other values as GPT-2 has them."
        )
    is_exact = config.get("activation_function") == EXACT_GELU
    return config_of_model_args({**config, "block_size": config.get("n_positions"), "exact_gelu": is_exact})


def needed_config(tensors: Mapping[str, Tensor], stated: Mapping[str, int | bool]) -> dict[str, int | bool]:
    """The `GPTConfig` values that a checkpoint needs.

    Args:
        tensors: Its tensors, under the names of our GPT.
        stated: Values stored with them; shapes take precedence. `n_head` and `exact_gelu` are only found
            here.

    Returns:
        The values that are known, `n_layer` first.
    """
    blocks = {int(match[1]) for name in tensors if (match := BLOCK.match(name))}
    tokens, positions, head = (tensors.get(name) for name in (TOKENS, POSITIONS, HEAD))
    needed: dict[str, int | bool] = {"n_layer": max(blocks) + 1} if blocks else {}
    needed |= {name: stated[name] for name in INVISIBLE if name in stated}
    if tokens is None or tokens.ndim != 2:
        return needed
    needed |= {"n_embd": tokens.shape[1], "vocab_size": tokens.shape[0]}
    block_size = stated.get("block_size") if positions is None else positions.shape[0]
    if block_size is not None:
        needed["block_size"] = block_size
    is_untied = head is not None and head.shape == tokens.shape and not torch.equal(head, tokens)
    return needed | {
        "bias": any(is_of_trunk(name) and name.endswith(".bias") for name in tensors),
        "use_rotary_embeddings": positions is None,
        "tie_weights": not is_untied,
    }


def unmet_needs(needed: Mapping[str, int | bool], config: GPTConfig, has_lm_head: bool) -> list[str]:
    """Names of the values without which a checkpoint cannot be loaded.

    Args:
        needed: The result of `needed_config`.
        config: That of the model.
        has_lm_head: Whether the model has the head that can be tied to the token embedding.
    """
    exceptions = {
        "vocab_size": config.vocab_size >= needed.get("vocab_size", 0),  # it may be larger
        "block_size": config.use_rotary_embeddings or config.block_size <= needed.get("block_size", 0),
        "tie_weights": not (config.tie_weights and has_lm_head) or needed.get("tie_weights", True),
    }
    return [name for name, need in needed.items() if not exceptions.get(name, getattr(config, name) == need)]


def needs_in_words(needed: Mapping[str, int | bool], unmet: Collection[str], config: GPTConfig) -> str:
    """What a checkpoint needs, with the model's own values where they differ.

    Args:
        needed: The result of `needed_config`.
        unmet: The result of `unmet_needs`.
        config: That of the model.

    Returns:
        A text such as `n_layer=12 (here 4), n_embd=128, vocab_size=1000 or more`.
    """
    room = {"vocab_size": " or more", "block_size": " or less"}
    return ", ".join(
        f"{name}={need}{room.get(name, '')}" + (f" (here {getattr(config, name)})" if name in unmet else "")
        for name, need in needed.items()
        if name in unmet or name != "tie_weights"  # an untied head can be filled from a tied one
    )
