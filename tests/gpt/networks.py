"""Tiny GPTs of each mode, and token numbers for them."""

from typing import Any

import torch
from torch import Tensor

from lighter_freezers import GPT, GPTConfig

SMALL = {"block_size": 16, "vocab_size": 61, "n_layer": 2, "n_head": 2, "n_embd": 16}
CLS = 60
CLASSIFIER = {"mode": "token_classifier", "num_token_classes": 3}
SCORER = {"mode": "sequence_scorer", "cls_token_id": CLS}


def small(**changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SMALL, **changes}))


def classifier(**changes: Any) -> GPT:
    return small(**CLASSIFIER, **changes)


def scorer(**changes: Any) -> GPT:
    return small(**SCORER, **changes)


def tokens(batch: int = 3, time: int = 16) -> Tensor:
    return torch.randint(60, (batch, time), generator=torch.Generator().manual_seed(1))


def with_cls(batch: int = 3, time: int = 16) -> Tensor:
    input_ids = tokens(batch, time)
    input_ids[:, 0] = CLS
    return input_ids


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def ignored() -> int:
    """Torch's default for a target without a loss."""
    return GPTConfig().ignore_index
