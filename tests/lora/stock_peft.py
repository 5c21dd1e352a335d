"""Saved adapters, loaded by stock PEFT in a process that never imports this package."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Every script begins with this; `base` is what adapters are loaded onto.
NETS = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.emb = nn.Embedding(32, 16)
        self.q = nn.Linear(16, 24, bias=bias)
        self.k = nn.Linear(24, 16)
        self.head = nn.Linear(16, 8)

    def forward(self, x):
        return self.head(torch.tanh(self.k(torch.tanh(self.q(self.emb(x))))))

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 16, 8) / 4)
        self.down = nn.Parameter(torch.randn(2, 8, 16) / 4)

    def forward(self, x):
        y = torch.einsum("bti,eio->beto", x, self.up)
        return torch.einsum("beti,eio->bto", torch.tanh(y), self.down)

class Moe(Plain):
    def __init__(self):
        super().__init__()
        self.experts = Experts()

    def forward(self, x):
        return self.head(self.experts(self.k(self.q(self.emb(x)))))

def base(kind="Plain", dtype="float32"):
    torch.manual_seed(0)
    return {"Plain": Plain, "Moe": Moe}[kind]().to(getattr(torch, dtype))
"""
_LOAD = """
import sys, warnings
warnings.simplefilter("ignore")
from peft import PeftModel
kind, *folders = sys.argv[1:]
x = torch.arange(32).view(4, 8)
for folder in folders:
    model = PeftModel.from_pretrained(base(kind), folder).eval()
    torch.save(model(x), folder + "/y.pt")
    torch.save({n: p for n, p in model.named_parameters()}, folder + "/parameters.pt")
assert not any(name.split(".")[0] == "lighter_freezers" for name in sys.modules)
"""
X = torch.arange(32).view(4, 8)


def base(kind: str = "Plain", dtype: str = "float32") -> nn.Module:
    """What stock PEFT loads adapters onto."""
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    network: nn.Module = scope["base"](kind, dtype)
    return network


def stock_outputs(folders: list[Path], kind: str = "Plain") -> list[torch.Tensor]:
    """What stock PEFT computes with each adapter, all of them in one process."""
    script = folders[0].parent / "load.py"
    script.write_text(NETS + _LOAD)
    command = [sys.executable, str(script), kind, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folders[0].parent, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / "y.pt") for folder in folders]


def stock_parameters(folder: Path) -> Mapping[str, torch.Tensor]:
    """The parameters of the model that `stock_outputs` loaded."""
    loaded: Mapping[str, torch.Tensor] = torch.load(folder / "parameters.pt")
    return loaded


def train(model: nn.Module, num_steps: int = 3, lr: float = 0.03) -> None:
    """Some steps of Adam on all that trains."""
    trainable = [p for p in model.parameters() if p.requires_grad and p.numel()]
    optimizer = torch.optim.Adam(trainable, lr=lr)
    for step in range(num_steps):
        optimizer.zero_grad()
        (model(X) - step).square().mean().backward()
        optimizer.step()
