"""Converts names and layouts of other GPT-2 code to our GPT's: prefixes, Conv1D, masks, tied weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lighter_freezers.selection.names import canonical_name, without_wrapper

__all__ = ["HEAD", "POSITIONS", "TOKENS", "is_of_trunk", "with_gpt_names"]

TOKENS, POSITIONS, HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"
TRUNK_PARTS = ("wte", "wpe", "h", "ln_f")
MASKS = ("attn.bias", "attn.masked_bias")  # buffers of GPT-2 and of nanoGPT without flash attention
LINEARS = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def is_of_trunk(name: str) -> bool:
    """Whether a parameter belongs to the trunk, as opposed to a head."""
    return name.partition(".")[0] == "transformer"


def with_gpt_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any GPT-2 checkpoint under our names and in our layout.

    Leading `_orig_mod.`, `module.`, `model.` and `network.` are removed in any nesting, masks are dropped,
    the weights of transformers' Conv1D are transposed, and a token embedding that was left out because the
    head is the same tensor is restored.

    Raises:
        ValueError: Two tensors with different values get the same name.
    """
    origins: dict[str, str] = {}
    renamed: dict[str, Tensor] = {}
    for origin, tensor in tensors.items():
        name = _gpt_name(origin)
        if name.partition(".h.")[2].partition(".")[2] in MASKS:
            continue
        if name in renamed and not torch.equal(renamed[name], tensor):
            raise ValueError(
                f"'{origins[name]}' and '{origin}' both map to '{name}', but their values differ. "
                "Save a checkpoint that contains only one of these models."
            )
        origins[name], renamed[name] = origin, tensor
    if HEAD in renamed:
        renamed.setdefault(TOKENS, renamed[HEAD])  # safetensors.torch.save_model keeps one of the two names
    return _turned(renamed)


def _gpt_name(name: str) -> str:
    shorter = without_wrapper(canonical_name(name))
    if shorter != name:
        return _gpt_name(shorter)
    return f"transformer.{name}" if name.partition(".")[0] in TRUNK_PARTS else name


def _turned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transpose Conv1D weights, which are (in, out); the shape of the query-key-value projection shows it."""
    first = next((tensor for name, tensor in tensors.items() if name.endswith(LINEARS[0])), None)
    if first is None or first.ndim != 2 or first.shape[1] != 3 * first.shape[0]:
        return tensors
    return {name: tensor.T if name.endswith(LINEARS) else tensor for name, tensor in tensors.items()}
