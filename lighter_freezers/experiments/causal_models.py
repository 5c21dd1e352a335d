"""Causal language models of transformers: loaded from a folder or the hub, and their tokenizers.

Nothing here trains or generates. The only module that knows what transformers calls all this, and since when.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
]

DTYPES = ("auto", "float32", "bfloat16", "float16")
ADAPTER_CONFIG = "adapter_config.json"


def load_causal_model(
    path: str | os.PathLike[str], dtype: str = "float32", options: Mapping[str, Any] | None = None
) -> Any:
    """A causal language model of transformers, ready to train: in train mode, with dropout if it has any.

    Args:
        path: A folder with `config.json` and weights, or an id on the Hugging Face hub.
        dtype: Of the weights: `float32`, `bfloat16`, `float16`, or `auto`, what they were saved in.
        options: More for `AutoModelForCausalLM.from_pretrained`, such as `attn_implementation` or `revision`.

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


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer that was saved with a model.

    Raises:
        ImportError: transformers is not installed.
        OSError: There is none; transformers says where it looked.
    """
    return _transformers().AutoTokenizer.from_pretrained(str(path))


def load_evaluated(path: str | os.PathLike[str], base: str | None = None) -> tuple[nn.Module, Any]:
    """A model and its tokenizer from what a run has left, in the dtype it was saved in.

    Args:
        path: The folder of an adapter of PEFT, whatever ranks its layers have, or of a whole model, or an id.
        base: What the adapter is for. None: the model that it names.

    Raises:
        ValueError: The adapter names no model, or a whole model comes with a base.
        OSError: There is no such model.
    """
    if not (Path(path) / ADAPTER_CONFIG).is_file():
        if base is not None:
            raise ValueError(
                f"{path} has no {ADAPTER_CONFIG}, so it is no adapter of PEFT. Give the folder of one, or, "
                "if it is a whole model, leave the base model out."
            )
        return load_causal_model(path, "auto"), load_tokenizer(path)
    from peft import PeftConfig, PeftModel

    of_adapter = base or PeftConfig.from_pretrained(str(path)).base_model_name_or_path
    if not of_adapter:
        raise ValueError(f"The adapter in {path} does not say what it is for: give the base model, too.")
    has_tokenizer = (Path(path) / "tokenizer_config.json").is_file()
    whole = load_causal_model(of_adapter, "auto")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT asks transformers 5
        network = PeftModel.from_pretrained(whole, str(path))
    return network, load_tokenizer(path if has_tokenizer else of_adapter)


def check_causal(network: object) -> nn.Module:
    """Check that something is a causal language model of transformers, or a `PeftModel` around one.

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


def base_of(network: nn.Module) -> Any:
    """The model of transformers inside a `PeftModel` and other wrappers."""
    inner: Any = unwrapped(network, at_root=True)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def checkpoint_activations(network: nn.Module) -> None:
    """Compute activations of blocks again in the backward pass instead of keeping them.

    It is the non-reentrant way, in which frozen blocks below everything that trains cost nothing in the
    backward pass. transformers lets the embeddings' output require a gradient along with it, which the other
    way needs and which would make every frozen block take part: that is undone here.

    Raises:
        ValueError: The model cannot do it.
    """
    model = base_of(network)
    how = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # the name from transformers 5 on
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    if hasattr(model, "_require_grads_hook") or getattr(model, "_require_grads_hooks", None):
        model.disable_input_require_grads()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "Causal language models need transformers, which is not installed. "
            'Get it: pip install "lighter-freezers[experiments]"'
        ) from error
    return transformers
