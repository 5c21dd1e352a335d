"""A network of a stem, four blocks, a norm and a head, and what moves in it while a Trainer trains it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.lab import WIDTH, ResumableLoader, adamw, batches, recorder, regression, resuming, sgd, trainer

BLOCKS = ["block 0", "block 1", "block 2", "block 3"]
EVERYTHING = ["stem", *BLOCKS, "norm", "head"]


class BlockNet(nn.Module):
    """The blocks are linear layers in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(self.norm(x))


def part_of(name: str) -> str:
    """`block 2` for `network.blocks.2.weight`."""
    parts = name.split(".")[1:]
    return f"block {parts[1]}" if parts[0] == "blocks" else parts[0]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts of which a weight differs; blind to flags."""
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


def moves(
    namespace: str,
    callbacks: Sequence[Any],
    num_epochs: int,
    optimizer: Callable[[Any], torch.optim.Optimizer] = sgd,
    **options: Any,
) -> list[set[str]]:
    """What moved in each optimizer step; there are four in an epoch."""
    module = regression(namespace, BlockNet, optimizer)
    states = recorder(
        namespace, lambda _, m: {k: v.clone() for k, v in m.state_dict().items()}, "on_train_batch_start"
    )
    trainer(namespace, callbacks=[*callbacks, states], max_epochs=num_epochs, **options).fit(
        module, batches(), batches()
    )
    values = [*states.seen, dict(module.state_dict())]
    return [moved(one, other) for one, other in zip(values, values[1:], strict=False)]


def upper(num_blocks: int, *others: str) -> set[str]:
    """Norm, head and so many blocks from the top."""
    return {"norm", "head", *BLOCKS[4 - num_blocks :], *others}


def lower(num_blocks: int, *others: str) -> set[str]:
    """Norm, head and so many blocks from the bottom."""
    return {"norm", "head", *BLOCKS[:num_blocks], *others}


def fit_saving_each_step(
    callback: Any,
    folder: Path,
    resume_from: Path | None,
    scheduler: Any = None,
    val_check_interval: Any = 1.0,
) -> dict[str, Any]:
    """Three epochs of four steps, a checkpoint after each; weights, optimizer, and flags at each step."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    lone = "pytorch_lightning"
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    frozen = recorder(lone, lambda t, m: (t.global_step, [p.requires_grad for p in m.parameters()]))
    module = regression(lone, BlockNet, adamw, scheduler)
    run = trainer(
        lone,
        callbacks=[callback, frozen, saver],
        max_epochs=3,
        val_check_interval=val_check_interval,
        enable_checkpointing=True,
        default_root_dir=folder,
    )
    loader = ResumableLoader(batches().dataset)
    run.fit(module, loader, batches(), **resuming(run, resume_from))
    optimizer = run.optimizers[0].state_dict()
    return {"weights": module.state_dict(), "optimizer": optimizer, "frozen": dict(frozen.seen)}
