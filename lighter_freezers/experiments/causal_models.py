"""Causal language models of transformers: loaded from a folder or the hub, and their tokenizers.

Nothing here trains or generates. The only module that depends on names in transformers and their versions.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from lighter_freezers._extras import require
from lighter_freezers.arguments import choice
from lighter_freezers.selection.names import unwrapped

__all__ = [
    "DTYPES",
    "base_of",
    "checkpoint_activations",
    "check_causal",
    "load_causal_model",
    "load_evaluated",
    "load_tokenizer",
    "CausalModel",
    "Tokenizer",
]

Tokenizer: TypeAlias = Any  # of transformers, an optional package whose types change with its version
CausalModel: TypeAlias = Any  # starts of the names: a module with `generate`, `config` and the like

DTYPES = ("auto", "float32", "bfloat16", "float16")
ADAPTER_CONFIG = "adapter_config.json"


def load_causal_model(
    path: str | os.PathLike[str], dtype: str = "float32", options: Mapping[str, object] | None = None
) -> CausalModel:
    """Load a causal language model of transformers in train mode, with dropout if it has any.

    Args:
        path: A folder with `config.json` and weights, or an id on the Hugging Face hub.
        dtype: Of the weights: `float32`, `bfloat16`, `float16`, or `auto` for the saved dtype.
        options: Further arguments of `AutoModelForCausalLM.from_pretrained`, such as `attn_implementation` or
            `revision`.

    Raises:
        ImportError: transformers is not installed.
        OSError: There is no such model, or the hub cannot be reached.
        ValueError: The dtype is unknown.
    """
    transformers = _transformers()
    chosen = choice("dtype", dtype, DTYPES)
    value = chosen if chosen == "auto" else getattr(torch, chosen)
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    keyword = "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
    loader = transformers.AutoModelForCausalLM
    try:
        return loader.from_pretrained(str(path), **{keyword: value, **(options or {})}).train()
    except OSError as error:
        raise OSError(
            f"No model at '{path}': it is no folder with a model, and the hub has none of this name or "
            "cannot be reached. Without a network, give a folder, such as the one that "
            f"lighter_freezers.smollm2_folder makes. {error}"
        ) from error


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Load the tokenizer that was saved with a model.

    Raises:
        ImportError: transformers is not installed.
        OSError: There is none; the message of transformers lists where it searched.
    """
    return _transformers().AutoTokenizer.from_pretrained(str(path))


def load_evaluated(path: str | os.PathLike[str], base: str | None = None) -> tuple[nn.Module, Tokenizer]:
    """Load a model and its tokenizer from the output of a run, in the saved dtype.

    Args:
        path: The folder of a PEFT adapter, with any ranks, or of a whole model, or an id.
        base: The base model of the adapter. None: the one named in the adapter.

    Raises:
        ValueError: The adapter names no model, or a whole model comes with a base.
        OSError: There is no such model.
    """
    if not (Path(path) / ADAPTER_CONFIG).is_file():
        if base is not None:
            raise ValueError(
                f"{path} has no {ADAPTER_CONFIG}, so it is not a PEFT adapter. Give the folder of one, or, "
                "if it is a whole model, leave the base model out."
            )
        return load_causal_model(path, "auto"), load_tokenizer(path)
    from peft import PeftConfig, PeftModel

    of_adapter = base or PeftConfig.from_pretrained(str(path)).base_model_name_or_path
    if not of_adapter:
        raise ValueError(f"The adapter in {path} does not name its base model: give it, too.")
    has_tokenizer = (Path(path) / "tokenizer_config.json").is_file()
    whole = load_causal_model(of_adapter, "auto")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT asks transformers 5
        network = PeftModel.from_pretrained(whole, str(path))
    return network, load_tokenizer(path if has_tokenizer else of_adapter)


def check_causal(network: object) -> nn.Module:
    """Check that a module is a causal language model of transformers, or a `PeftModel` around one.

    Raises:
        TypeError: It is not.
    """
    is_causal = isinstance(network, nn.Module) and hasattr(base_of(network), "prepare_inputs_for_generation")
    if not is_causal:
        raise TypeError(
            "network must be a causal language model of transformers, such as LlamaForCausalLM, or one with "
            f"an adapter of PEFT. Got {type(network).__name__}. A lighter_freezers.GPT trains in GPTModule."
        )
    assert isinstance(network, nn.Module)
    return network


def base_of(network: nn.Module) -> CausalModel:
    """The model of transformers inside a `PeftModel` and other wrappers."""
    inner: CausalModel = unwrapped(network, at_root=True)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def checkpoint_activations(network: nn.Module) -> None:
    """Recompute activations of blocks in the backward pass instead of keeping them.

    This is the non-reentrant variant, in which frozen blocks below everything that trains cost nothing in the
    backward pass. transformers also makes the embeddings' output require a gradient, which only the
    re-entrant variant needs and which would run the backward pass through every frozen block: that is undone
    here.

    Raises:
        ValueError: The model does not support it.
    """
    model = base_of(network)
    how = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the name from transformers 5 on
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    if hasattr(model, "_require_grads_hook") or getattr(model, "_require_grads_hooks", None):
        model.disable_input_require_grads()


def _transformers() -> Any:  # the package, which may be missing
    require("A causal language model", "transformers")
    import transformers

    return transformers
