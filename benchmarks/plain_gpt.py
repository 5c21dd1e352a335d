"""The yardstick of B9: a GPT as nanoGPT computes it, stated again in plain torch, with its plain loss.

Three projections cut from one, torch's fused attention, exact GELU, layer norms without bias, the head tied
to the token embedding, all logits at once, mean cross-entropy.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PlainGPT"]


class PlainBlock(nn.Module):
    """Attention and MLP behind norms, around a residual path."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_1 = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_2 = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        shape = (B, T, self.num_heads, C // self.num_heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.qkv(self.norm_1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        x = x + self.out(y.transpose(1, 2).contiguous().view(B, T, C))
        mixed: Tensor = x + self.down(self.act(self.up(self.norm_2(x))))
        return mixed


class PlainGPT(nn.Module):
    """Token and position embeddings, blocks, a norm and the tied head.

    Args:
        vocab: Number of tokens.
        num_layers: Number of blocks.
        width: Channels.
        num_heads: Heads of a block.
        time: The longest sequence.
    """

    def __init__(self, vocab: int, num_layers: int, width: int, num_heads: int, time: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(time, width)
        self.blocks = nn.ModuleList(PlainBlock(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """The loss."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.tokens(input_ids) + self.positions(places)  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))  # (B, T, V)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
