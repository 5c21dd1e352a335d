"""The network of a CausalLMModule: loaded or given, adapted by LoRA, and checked against the data."""

from collections.abc import Mapping

import torch
from torch import nn

from lighter_freezers.experiments.causal_models import (
    base_of,
    check_causal,
    checkpoint_activations,
    load_causal_model,
    load_tokenizer,
)
from lighter_freezers.experiments.training.trained_weights import has_adapter
from lighter_freezers.lora.apply import apply_lora
from lighter_freezers.lora.sites import lora_layers

__all__ = ["adapted", "check_tokens_fit", "network_from"]

PROBE = "The ferry (no. 17) leaves at 6:45, doesn't it?"  # other tokenizers split this differently


def network_from(
    model: str | None, network: nn.Module | None, dtype: str, load_options: Mapping[str, object] | None
) -> nn.Module:
    """The given network, or the loaded one; in train mode, because Lightning keeps the mode of a module.

    Raises:
        TypeError: The network is not a causal language model.
        ValueError: Both or neither are given, or options for loading without a model to load.
    """
    if (model is None) == (network is None):
        raise ValueError(
            "Give either model, a path or an id on the Hugging Face hub, or network, a model that is there "
            f"already. Got {'neither' if model is None else 'both'}."
        )
    if network is not None:
        if dtype != "float32" or load_options:
            raise ValueError(
                "dtype and load_options are for a model that is loaded. A network has its dtype."
            )
        return check_causal(network).train()
    assert model is not None
    return check_causal(load_causal_model(model, dtype, load_options))


def adapted(
    network: nn.Module, lora: Mapping[str, object] | None, model: str | None, *, gradient_checkpointing: bool
) -> nn.Module:
    """The network with LoRA and everything else frozen, and with checkpointed activations, if requested.

    Args:
        network: A causal language model; it is changed in place.
        lora: As for `apply_lora`. None for no LoRA: then flags are not changed.
        model: The path or id it was loaded from, which a saved adapter names.
        gradient_checkpointing: Whether blocks are recomputed in the backward pass.

    Raises:
        ValueError: It has an adapter already.
    """
    if lora is not None:
        if has_adapter(network):
            raise ValueError("The network has an adapter already: leave lora out, or give it without one.")
        apply_lora(network, {"task_type": "CAUSAL_LM", **lora})  # for PEFT's Auto classes
        _widen_adapters(network)
        if model is not None:
            network.peft_config["default"].base_model_name_or_path = model  # type: ignore[union-attr, index]
    if gradient_checkpointing:
        checkpoint_activations(network)
    return network


def check_tokens_fit(network: nn.Module, model: str | None, datamodule: object) -> None:
    """Refuse data that are encoded with another tokenizer than the model's, before the first batch.

    Args:
        network: The model.
        model: The path or id it was loaded from. None: its tokenizer is unknown, only the number of tokens is
            checked.
        datamodule: May have `vocab_size`, and a `tokenizer` with `encode_all`.

    Raises:
        ValueError: There are too many tokens, or another tokenizer.
    """
    num_tokens = getattr(datamodule, "vocab_size", None)
    num_embeddings = base_of(network).get_input_embeddings().weight.shape[0]
    if num_tokens is not None and num_tokens > num_embeddings:
        raise ValueError(
            f"The data have {num_tokens} tokens, but {type(base_of(network)).__name__} has {num_embeddings}. "
            "Give the data the model's tokenizer."
        )
    encode = getattr(getattr(datamodule, "tokenizer", None), "encode_all", None)
    own = None if model is None or encode is None else _own_encoding(model)
    if own is not None and encode is not None and [list(ids) for ids in encode([PROBE])] != [own]:
        raise ValueError(
            f"The data are not encoded with the tokenizer of {model}, so its weights would mean nothing. "
            f"Set the data module's tokenizer to {model}."
        )


def _own_encoding(model: str) -> list[int] | None:
    """The tokens of a text for a model; None if it has no tokenizer."""
    try:
        tokenizer = load_tokenizer(model)
    except (OSError, ValueError):
        return None
    return list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])


def _widen_adapters(network: nn.Module) -> None:
    """Keep adapters in float32 on a 16-bit base, as in PEFT: small steps would be lost in rounding."""
    for layer in lora_layers(network, "default").values():
        for parameter in layer.parameters():
            is_adapter = not any(parameter is other for other in layer.get_base_layer().parameters())
            if is_adapter and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
