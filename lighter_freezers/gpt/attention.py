"""Attention of a GPT: causal or bidirectional, rotary positions, and the choice of kernel.

Shapes: B batch, T time, C channels (`n_embd`), H heads, D = C / H channels of a head, Q query positions: T,
or 1 where only the first is needed.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighter_freezers.gpt.bare_linear import is_bare
from lighter_freezers.gpt.config import GPTConfig

__all__ = ["SelfAttention", "attended", "rotated"]

LONGEST_FOR_MATRICES = 512  # up to this T, on a CPU in bfloat16, matrix products beat torch's fused attention


class SelfAttention(nn.Module):
    """Multi-head attention: each position attends to itself and earlier ones; bidirectional, to all."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.is_causal = config.attention_type == "causal"
        self.use_rotary_embeddings = config.use_rotary_embeddings
        # query, key, value in one
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, is_first_only: bool = False) -> Tensor:
        """Apply attention.

        Args:
            x: (B, T, C).
            mask: True for positions that may be attended to, (B, 1, 1, T). None: all, or with causal
                attention all earlier ones.
            is_first_only: Whether only the first position is a query.

        Returns:
            (B, Q, C).
        """
        q, k, v = self._first_query(x) if is_first_only else self._heads(self.c_attn(x), 3)
        if self.use_rotary_embeddings:
            q, k = rotated(q), rotated(k)
        dropout = self.dropout if self.training else 0.0
        y = attended(q, k, v, mask, self.is_causal, dropout)  # (B, H, Q, D)
        y = y.transpose(1, 2).flatten(2)  # (B, Q, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)

    def _heads(self, x: Tensor, num_parts: int) -> tuple[Tensor, ...]:
        """Split channels into parts and heads: (B, T, parts * C) -> (B, H, T, D) each."""
        heads = (*x.shape[:2], self.n_head, -1)
        return tuple(part.view(heads).transpose(1, 2) for part in x.chunk(num_parts, dim=-1))

    def _first_query(self, x: Tensor) -> tuple[Tensor, ...]:
        """The query of the first position, and all keys and values."""
        C = x.shape[-1]
        if not is_bare(self.c_attn):  # it is modified, for example by LoRA, so no part of it can be skipped
            q, k, v = self._heads(self.c_attn(x), 3)
            return q[:, :, :1], k, v
        weight, bias = self.c_attn.weight, self.c_attn.bias  # (3C, C), (3C)
        query_bias, other_bias = (None, None) if bias is None else (bias[:C], bias[C:])
        (q,) = self._heads(F.linear(x[:, :1], weight[:C], query_bias), 1)  # (B, H, 1, D)
        k, v = self._heads(F.linear(x, weight[C:], other_bias), 2)  # (B, H, T, D) each
        return q, k, v


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, dropout: float) -> Tensor:
    """Softmax attention, by the faster of two implementations.

    On a CPU in bfloat16, two batched matrix products around a softmax take 0.2 (T = 32) to 0.7 (T = 512) of
    the time of torch's fused attention, forward and backward; in float32 and for longer sequences the fused
    one is the faster. Measured with `python -m benchmarks.gpt --dtype bf16`.

    Args:
        q: Queries, (B, H, Q, D).
        k: Keys, (B, H, T, D).
        v: Values, (B, H, T, D).
        mask: True for keys that may be attended to, (B, 1, 1, T); not together with `is_causal`. None: all.
        is_causal: Whether query i sees keys 0 to i only.
        dropout: Probability of dropping a weight.

    Returns:
        (B, H, Q, D).
    """
    is_short = k.shape[-2] <= LONGEST_FOR_MATRICES
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not is_short:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)
    B, H, Q, D = q.shape
    queries, keys, values = (part.flatten(0, 1) for part in (q, k, v))  # (B * H, Q or T, D) each
    allowed = _log_of_allowed(q, k, mask, is_causal)  # (1 or B * H, 1 or Q, T)
    scores = torch.baddbmm(allowed, queries, keys.transpose(1, 2), alpha=1 / math.sqrt(D))  # (B * H, Q, T)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ values).view(B, H, Q, D)


def _log_of_allowed(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """The mask as a term for the scores: 0 where attention is allowed, -inf elsewhere."""
    H, Q, T = q.shape[1], q.shape[2], k.shape[2]
    if is_causal:
        return q.new_full((1, Q, T), -math.inf).triu_(1)
    if mask is None:
        return q.new_zeros(1, 1, 1)
    forbidden = q.new_zeros(mask.shape).masked_fill_(~mask, -math.inf)  # (B, 1, 1, T)
    return forbidden.expand(-1, H, -1, -1).flatten(0, 1)  # (B * H, 1, T)


def rotated(x: Tensor) -> Tensor:
    """Rotate pairs of channels by an angle that grows with the position (RoPE, arXiv 2104.09864).

    The product of a rotated query and a rotated key depends on the distance between their positions only.

    Args:
        x: Queries or keys, (B, H, T, D) with an even D; channel i is paired with channel i + D / 2.
    """
    T, D = x.shape[-2:]
    frequency = 10_000.0 ** (-torch.arange(0, D, 2, device=x.device, dtype=torch.float32) / D)  # (D / 2)
    angle = torch.arange(T, device=x.device, dtype=torch.float32)[:, None] * frequency  # (T, D / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)  # (B, H, T, D / 2)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
