"""Checks of tensor values that do not make the host wait for a GPU."""

import torch
from torch import Tensor

__all__ = ["require"]


def require(is_true: Tensor, message: str) -> None:
    """Raise if a condition on tensor values does not hold.

    On a GPU the host does not wait for the answer: the process fails some operations later, with the message
    in the device's error. So too in compiled code.

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
