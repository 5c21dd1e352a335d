"""Models of three makers with random weights, for tests of checkpoints. NanoGPT shares no code with ours."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lighter_freezers import GPT, GPTConfig

SMALL = {"block_size": 16, "vocab_size": 61, "n_layer": 2, "n_head": 2, "n_embd": 16}
WTE, WPE, HEAD = "transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"


def small(seed: int = 0, **changes: Any) -> GPT:
    """A model whose weights are large enough for the details of a formula to show in the logits."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens() -> torch.Tensor:
    return torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(1))


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tokens())[0]


def saved(weights: Any, path: Path) -> Path:
    torch.save(weights, path)
    return path


def gpt2(**changes: Any) -> Any:
    """A GPT-2 of transformers with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(7)
    sizes = {"vocab_size": 61, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(
        GPT2Config(**sizes, initializer_range=0.3, bos_token_id=0, eos_token_id=0, **changes)
    )
    return model.eval()


def logits_of_gpt2(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits


class NanoBlock(nn.Module):
    """A block as nanoGPT writes it, with the attention in plain matrices and its mask as a buffer."""

    def __init__(self, width: int, num_heads: int, length: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.attn = nn.Module()
        self.attn.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.attn.c_proj = nn.Linear(width, width, bias=bias)
        self.attn.register_buffer("bias", torch.ones(1, 1, length, length).tril())
        self.mlp = nn.Module()
        self.mlp.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.mlp.c_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)) for part in self.attn.c_attn(self.ln_1(x)).chunk(3, -1)
        )
        scores = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(self.attn.bias == 0, -torch.inf)
        x = x + self.attn.c_proj(torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2))
        return x + self.mlp.c_proj(nn.GELU()(self.mlp.c_fc(self.ln_2(x))))


class NanoGPT(nn.Module):
    """A restatement of nanoGPT that shares no line with the package: full blocks of 16 tokens only."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        parts = {"wte": nn.Embedding(61, 16), "wpe": nn.Embedding(16, 16), "drop": nn.Dropout(0.0)}
        blocks = nn.ModuleList(NanoBlock(16, 2, 16, bias) for _ in range(2))
        self.transformer = nn.ModuleDict({**parts, "h": blocks, "ln_f": nn.LayerNorm(16, bias=bias)})
        self.lm_head = nn.Linear(16, 61, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, None]:
        x = self.transformer.wte(input_ids) + self.transformer.wpe.weight
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x)), None


def nanogpt_checkpoint(bias: bool) -> tuple[NanoGPT, dict[str, Any]]:
    """The dictionary that nanoGPT's train.py saves after some steps, of a compiled model."""
    torch.manual_seed(3)
    model = NanoGPT(bias)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0e-2)
    for _ in range(2):
        F.cross_entropy(model(tokens())[0].flatten(0, 1), tokens().flatten()).backward()
        optimizer.step()
    model_args = {**SMALL, "bias": bias, "dropout": 0.0}
    return model, {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": model_args,
        "iter_num": 2,
        "best_val_loss": torch.tensor(4.0),
        "config": {**model_args, "dataset": "none"},
    }
