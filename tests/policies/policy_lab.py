"""A small network of blocks, and runs of policies on it that record what trains, at which rates."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lighter_freezers import AutoFreeze, AutoRgn, BlockCycling, FreezeOut, Lisa, Misa, Spectrum
from tests.lab import WIDTH, ResumableLoader, adamw, batches, recorder, regression, trainer

LONE = "pytorch_lightning"
NUM_STEPS = 12  # three epochs of four batches
POLICIES: dict[str, Callable[[], Any]] = {
    "Lisa": lambda: Lisa(num_blocks=2, every_n_steps=3, seed=5),
    "Lisa, rest frozen": lambda: Lisa(num_blocks=1, every_n_steps=3, seed=5, rest="freeze"),
    "BlockCycling": lambda: BlockCycling(every_n_steps=3, seed=1),
    "AutoFreeze": lambda: AutoFreeze(every_n_steps=3),
    "FreezeOut": lambda: FreezeOut(num_steps=NUM_STEPS, t0=0.6, every_n_steps=2),
    "Spectrum": lambda: Spectrum(top_percent=25),
    "Misa": lambda: Misa(share=0.3, every_n_steps=3, sharpness=2.0, seed=2),
    "AutoRgn": lambda: AutoRgn(every_n_steps=3),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Tower(nn.Module):
    """A stem, four blocks of a norm and two matrices, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def trained(module: nn.Module) -> list[str]:
    """Names below the wrapper of what trains."""
    return [name.partition(".")[2] for name, each in module.named_parameters() if each.requires_grad]


def parts(names: Sequence[str]) -> list[str]:
    """`stem`, `0`, ..., `norm`, `head`, in order, of which anything is named."""
    return list(
        dict.fromkeys(n.split(".")[1] if n.split(".")[0] == "blocks" else n.split(".")[0] for n in names)
    )


def look(fit: Any, module: Any) -> tuple[list[str], list[float]]:
    """What trains, and the rate of each of these parameters."""
    rate_of = {id(p): g["lr"] for o in fit.optimizers for g in o.param_groups for p in g["params"]}
    rates = [float(rate_of[id(p)]) for p in module.parameters() if p.requires_grad]
    return trained(module), rates


def whole(tensor: Any) -> torch.Tensor:
    """A sharded tensor put together again."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Run:
    """A run of a policy: `seen` at each step, the weights, and the optimizer's state."""

    def __init__(
        self,
        callbacks: Sequence[Any],
        *,
        max_epochs: int = 3,
        network: Callable[[], nn.Module] = Tower,
        optimizer: Callable[[Any], Any] = adamw,
        save: Sequence[tuple[int, Path]] = (),
        loader: Any = None,
        ckpt_path: Path | None = None,
        prepare: Callable[[Any], object] = lambda module: None,
        scheduler: Callable[[Any], Any] | None = None,
        module: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        torch.set_num_threads(1)
        steps = dict(save)

        def saving(fit: Any, module: Any) -> None:
            if fit.global_step in steps:  # once: later batches of an accumulation have the same step
                fit.save_checkpoint(steps.pop(fit.global_step))

        seen = recorder(LONE, look, "on_before_optimizer_step")
        self.trainer = trainer(
            LONE,
            callbacks=[*callbacks, seen, recorder(LONE, saving)],
            max_epochs=max_epochs,
            limit_val_batches=0,
            **options,
        )
        self.module = module() if module else regression(LONE, network, optimizer, scheduler)
        prepare(self.module)
        train = loader or ResumableLoader(batches().dataset)
        self.trainer.fit(self.module, train, batches(), ckpt_path=str(ckpt_path) if ckpt_path else None)
        self.seen = seen.seen
        self.weights = {name: whole(each.detach()).clone() for name, each in self.module.named_parameters()}
        self.state = str([sorted(each.state_dict()["state"].items()) for each in self.trainer.optimizers])

    @property
    def training(self) -> list[list[str]]:
        """What trained at each step."""
        return [names for names, _ in self.seen]

    def equals(self, other: "Run", first: int = 0) -> bool:
        """Whether weights and optimizer state are bit-equal, and `seen` is that of `other` from a step on."""
        same = all(torch.equal(each, other.weights[name]) for name, each in self.weights.items())
        return same and self.state == other.state and self.seen == other.seen[first:]
