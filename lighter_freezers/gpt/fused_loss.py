"""Head and cross-entropy fused, a few positions at a time: the logits of all positions never exist at once.

The gradients are computed in the forward pass, while the logits of a chunk exist. The idea is that of
"Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009) and of the Liger kernels
(arXiv 2410.10989), in plain torch.

Shapes: N positions, n positions of a chunk, C channels, V vocabulary.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lighter_freezers.gpt.bare_linear import is_bare

__all__ = ["fused_cross_entropy", "is_fusion_better"]

FUSED_FROM = 2**21  # logits; below this, all at once are as fast or faster, and small
CHUNK_ON_CPU = 2**24  # logits of a chunk: 64 MiB in float32
CHUNK_ELSEWHERE = 2**27


def is_fusion_better(head: nn.Module, hidden: Tensor) -> TypeGuard[nn.Linear]:
    """Whether `fused_cross_entropy` is faster or smaller for this size, dtype and head.

    | where | plain | fused |
    |---|---|---|
    | below 2**21 logits, compiled code, a head that is more than its weight | x | |
    | CPU: float32, float64 | | x |
    | CPU: bfloat16, whose weight gradients in float32 take longer than they save | x | |
    | GPU: float32, bfloat16 | | x |
    | float16, whose small gradients need the loss scale that comes later | x | |

    Args:
        head: The module from C to V.
        hidden: (N, C).
    """
    if not is_bare(head) or head.bias is not None or torch.compiler.is_compiling():
        return False
    if len(hidden) * head.out_features < FUSED_FROM:
        return False
    dtype = _compute_dtype(hidden, head.weight)
    return dtype in (torch.float32, torch.float64) or (hidden.is_cuda and dtype == torch.bfloat16)


def fused_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, *, chunk_size: int | None = None
) -> Tensor:
    """The mean cross-entropy of `hidden @ weight.T`, 0 where no position counts.

    Its backward pass returns the gradients computed in the forward pass, or a copy if the graph is retained.
    There are no second derivatives.

    Args:
        hidden: (N, C).
        weight: Of the head, (V, C).
        targets: Classes, (N).
        ignore_index: The target of positions that do not count.
        chunk_size: How many logits may exist at a time. None: by device.

    Returns:
        A scalar in nats, float32 or float64.
    """
    if chunk_size is None:
        chunk_size = CHUNK_ON_CPU if hidden.device.type == "cpu" else CHUNK_ELSEWHERE
    num_chunks = -(-hidden.shape[0] * weight.shape[0] // chunk_size) or 1
    num_rows = -(-hidden.shape[0] // num_chunks) or 1
    loss: Tensor = _FusedCrossEntropy.apply(hidden, weight, targets, ignore_index, num_rows)
    return loss


class _FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # torch declares nothing of what a function may keep in it
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        num_rows: int,
    ) -> Tensor:
        dtype = _compute_dtype(hidden, weight)
        wide = torch.promote_types(dtype, torch.float32)
        is_hidden_trained, is_weight_trained = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden, dtype=wide) if is_hidden_trained else None  # (N, C)
        weight_grad = torch.zeros_like(weight, dtype=wide) if is_weight_trained else None  # (V, C)
        is_valid = targets != ignore_index
        share = is_valid / is_valid.sum().clamp_min(1).to(wide)  # of a position in the mean, (N)
        targets = torch.where(is_valid, targets, 0)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        buffer = torch.empty(num_rows, len(weight), dtype=wide, device=hidden.device)  # (n, V)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            for start in range(0, len(hidden), num_rows):
                rows = slice(start, start + num_rows)
                chunk = _Chunk(hidden[rows], weight, targets[rows, None], share[rows, None], buffer)
                loss += chunk.loss
                if hidden_grad is not None:
                    hidden_grad[rows] = chunk.hidden_grad()
                if weight_grad is not None:
                    chunk.add_weight_grad(weight_grad)
        ctx.gradients = (hidden_grad, weight_grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # as in `forward`
        loss_grad: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The backward pass of this loss was run before, and its gradients are freed. To run it "
                "again, call backward(retain_graph=True) the first time."
            )
        hidden_grad, weight_grad = ctx.gradients
        if torch._C._autograd._get_current_graph_task_keep_graph():
            hidden_grad, weight_grad = (part if part is None else part.clone() for part in ctx.gradients)
        else:
            ctx.gradients = None  # scaled in place: the caller owns them now
        for gradient in (hidden_grad, weight_grad):
            if gradient is not None:
                gradient.mul_(loss_grad)
        return hidden_grad, weight_grad, None, None, None


class _Chunk:
    """The loss of some positions, and its gradients on request.

    With e = exp(logits - max), s their sum and y the one-hot target, the gradient of a position's loss by its
    logits is (e - s y) / s. The division is left to the smaller factors.

    Args:
        hidden: (n, C).
        weight: (V, C).
        targets: (n, 1).
        share: The weight of each position in the mean, (n, 1).
        buffer: Memory for the logits, (n or more, V).
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, share: Tensor, buffer: Tensor
    ) -> None:
        self._hidden, self._weight = hidden, weight
        logits = buffer[: len(hidden)]  # (n, V)
        if logits.dtype == hidden.dtype:
            torch.mm(hidden, weight.T, out=logits)
        else:
            logits.copy_(hidden @ weight.T)
        shift = logits.amax(dim=1, keepdim=True)  # (n, 1)
        at_target = logits.gather(1, targets)
        exponentials = logits.sub_(shift).exp_()
        total = exponentials.sum(dim=1, keepdim=True)
        self.loss = (share * (total.log() + shift - at_target)).sum()
        self._scale = share / total
        self._unscaled = exponentials.scatter_add_(1, targets, -total).to(hidden.dtype)  # (n, V)

    def hidden_grad(self) -> Tensor:
        """The gradient of the hidden states, (n, C)."""
        return (self._unscaled @ self._weight) * self._scale

    def add_weight_grad(self, weight_grad: Tensor) -> None:
        """Add the gradient of the weight to (V, C)."""
        scaled = (self._hidden * self._scale).to(self._hidden.dtype)  # (n, C)
        if weight_grad.dtype == scaled.dtype:
            weight_grad.addmm_(self._unscaled.T, scaled)
        else:
            weight_grad += self._unscaled.T @ scaled


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype the head computes in: autocast's where it is on, else that of its weight."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
