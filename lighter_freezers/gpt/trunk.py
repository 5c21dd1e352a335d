"""The trunk of a GPT: embeddings and pre-norm blocks, with the parameter names of nanoGPT.

Shapes: B batch, T time, C channels (`n_embd`), Q output positions: T, or only the first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighter_freezers.gpt.attention import SelfAttention
from lighter_freezers.gpt.config import GPTConfig

__all__ = ["Trunk"]


class MLP(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.gelu = "none" if config.exact_gelu else "tanh"  # the tanh approximation
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate=self.gelu)  # (B, T, 4C)
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    """Attention, then MLP, each after a norm and with a residual connection."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = SelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, is_first_only: bool = False) -> Tensor:
        attended = self.attn(self.ln_1(x), mask, is_first_only)  # (B, Q, C)
        x = (x[:, :1] if is_first_only else x) + attended
        mixed: Tensor = x + self.mlp(self.ln_2(x))  # (B, Q, C)
        return mixed


class Trunk(nn.Module):
    """Everything but the head: embeddings, blocks and the final norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = None if config.use_rotary_embeddings else nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(
        self, input_ids: Tensor, mask: Tensor | None = None, *, cls_embedding: Tensor | None = None
    ) -> Tensor:
        """Compute hidden states.

        Args:
            input_ids: Token numbers, (B, T).
            mask: True for positions that may be attended to, (B, 1, 1, T). None: all that the attention type
                allows.
            cls_embedding: Replaces the first token's embedding, (C); then only the first position goes
                through the query, the projection and the MLP of the last block. None for all positions.

        Returns:
            (B, T, C), or (B, 1, C).

        Raises:
            ValueError: An id is none of the vocabulary. On a GPU torch stops the process instead.
        """
        x = self._embedded(input_ids)  # (B, T, C)
        if cls_embedding is not None:
            x = torch.cat((cls_embedding.to(x.dtype).expand(len(x), 1, -1), x[:, 1:]), dim=1)
        if self.wpe is not None:
            x = x + self.wpe.weight[: input_ids.shape[1]]  # (B, T, C) + (T, C)
        x = F.dropout(x, self.dropout, self.training)
        for index, block in enumerate(self.h):
            is_last = index == len(self.h) - 1
            x = block(x, mask, is_last and cls_embedding is not None)
        hidden: Tensor = self.ln_f(x)  # (B, Q, C)
        return hidden

    def _embedded(self, input_ids: Tensor) -> Tensor:
        try:  # not checked before: that would wait for the device at each step
            embeddings: Tensor = self.wte(input_ids)
        except IndexError as error:
            raise ValueError(
                f"input_ids has ids from {int(input_ids.min())} to {int(input_ids.max())}, and the "
                f"vocabulary has {len(self.wte.weight)}, counted from 0. Use the tokenizer of this model, or "
                "a larger vocab_size."
            ) from error
        return embeddings
