"""Tiny models with LoRA layers of every kind, trained a little so that their factors are not zero."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

KINDS = ("Linear", "Conv1D", "Embedding", "Conv2d")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}


class Single(nn.Module):
    """One layer to adapt, with another behind it that is not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.target = _base(kind)
        self.head = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.target(x)
        return self.head(y.flatten(2).mean(2) if self.kind == "Conv2d" else y)


def _base(kind: str) -> nn.Module:
    if kind == "Linear":
        return nn.Linear(32, 24)
    if kind == "Embedding":
        return nn.Embedding(32, 24)
    if kind == "Conv2d":
        return nn.Conv2d(4, 24, kernel_size=3, padding=1)
    from transformers.pytorch_utils import Conv1D

    return Conv1D(24, 32)


def inputs(kind: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The same batch every time."""
    generator = torch.Generator().manual_seed(5)
    if kind == "Embedding":
        return torch.randint(32, (64, 6), generator=generator)
    shape = (16, 4, 5, 5) if kind == "Conv2d" else (64, 32)
    return torch.randn(*shape, generator=generator).to(dtype)


def adapted(kind: str, r: int = 8, dtype: torch.dtype = torch.float32, **config: Any) -> Single:
    """A model with LoRA on its one target, after some steps of training."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    options = {"r": r, "lora_alpha": 12, "target_modules": ["target"], "fan_in_fan_out": kind == "Conv1D"}
    model = Single(kind).to(dtype)
    inject_adapter_in_model(LoraConfig(**{**options, **config}), model)
    return model


def trained(kind: str, r: int = 8, dtype: torch.dtype = torch.float32, **config: Any) -> Single:
    """The same with factors that have learnt something: no zeros, and no orthogonality either."""
    model = adapted(kind, r, dtype, **config)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator).to(dtype)
                parameter.add_(0.2 * noise)
    return model


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, num_steps: int = 3
) -> list[float]:
    """Train towards a fixed target."""
    target = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(7)).to(model(x))
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def delta(model: Single) -> torch.Tensor:
    """The weight update as PEFT computes it, in double precision: (m, n)."""
    layer: Any = model.target
    if layer.r["default"] == 0:
        return torch.zeros(1, dtype=torch.double)
    name = "default"
    if name in layer.lora_embedding_A:
        A, B = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    else:
        A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    return layer.scaling[name] * (B.double().flatten(1) @ A.double().flatten(1)).detach()


def maker(kind: str, **config: Any) -> Callable[[], Single]:
    """`trained` with arguments."""
    return lambda: trained(kind, **config)


class Mixed(nn.Module):
    """An embedding, three linear layers and a convolution, for the regression of `tests.lab`."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(16, 12)
        self.h = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(12, 12)}) for _ in range(2))
        self.conv = nn.Conv2d(1, 6, kernel_size=3, padding=1)
        self.proj = nn.Linear(12, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.wte((x * 4 + 8).long().clamp(0, 15))  # (B, 8, 12)
        for block in self.h:
            y = y + torch.tanh(block["fc"](y))
        return self.head(self.proj(y).mean(1) + self.conv(y[:, None]).mean((2, 3)))


def mixed(**config: Any) -> Mixed:
    """`Mixed` with LoRA on all but the head, which trains too."""
    from lighter_freezers import apply_lora

    options = {"r": 3, "lora_alpha": 6, "target_modules": ["wte", "fc", "conv", "proj"]}
    network = apply_lora(Mixed(), {**options, **config})
    network.head.requires_grad_(True)
    return network
