"""Attention masks for padding, their check, and a check of tensors that does not synchronize with a GPU.

B batch, T time.
"""

import torch
from torch import Tensor

__all__ = ["checked_attention_mask", "mask_of_padding", "require"]


def checked_attention_mask(attention_mask: Tensor, input_ids: Tensor) -> Tensor:
    """Check that an attention mask marks real tokens, and that padding comes after them.

    Args:
        attention_mask: True or 1 where a token is real, (B, T).
        input_ids: The tokens, (B, T).

    Returns:
        The mask as bool.

    Raises:
        ValueError: It has another shape or numbers that are not whole, or padding comes first or between.
    """
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}, but input_ids are {tuple(input_ids.shape)}: "
            "it needs one truth value per token."
        )
    if attention_mask.is_floating_point():
        raise ValueError(
            f"attention_mask is {attention_mask.dtype}: give truth values, true where a token is real."
        )
    is_real = attention_mask.bool()
    is_right_padded = is_real[:, 0].all() & (is_real[:, 1:] <= is_real[:, :-1]).all()
    require(
        is_right_padded,
        "attention_mask has padding before a real token: pad on the right, so that positions count from 0.",
    )
    return is_real


def mask_of_padding(is_real: Tensor | None, is_causal: bool) -> Tensor | None:
    """The mask that attention needs so that no position attends to padding.

    Causal attention needs none: padding comes after all real tokens, where it is not attended to. On a CPU
    there is none where no row is padded; on a GPU and in compiled code that check would make the host wait.

    Args:
        is_real: True where a token is real, (B, T). None: there is no padding.
        is_causal: Whether attention is causal.

    Returns:
        True where a key may be attended to, (B, 1, 1, T), or None.
    """
    if is_real is None or is_causal:
        return None
    can_look = is_real.device.type == "cpu" and not torch.compiler.is_compiling()
    if can_look and bool(is_real.all()):
        return None
    return is_real[:, None, None, :]  # (B, 1, 1, T)


def require(is_true: Tensor, message: str) -> None:
    """Raise if a condition on tensor values does not hold.

    On a GPU the host does not wait for the result: the process fails some operations later, with the message
    in the device's error. The same holds in compiled code.

    Args:
        is_true: A scalar of bool.
        message: What is wrong and what to do.

    Raises:
        ValueError: It does not hold; on a CPU.
    """
    if is_true.is_meta:
        return
    if is_true.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(is_true, message)
    elif not is_true:
        raise ValueError(message)
