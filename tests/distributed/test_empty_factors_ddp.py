"""LoRA of rank 0 under DDP, which gives its factors a gradient: optimizers that divide by a size get none."""

import os
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, LoraRankScheduler, apply_lora
from tests.callbacks.test_freezer_resume import same
from tests.distributed.run_ranks import run_ranks
from tests.engine.test_unusual_modules import Blocks
from tests.lab import NAMESPACES, batches, regression, trainer

RANK = {"name": "set_layer_lora_rank", "value": ["block.1", 3], "max_wait_iters": 3}
CALLBACKS = {
    "freezer": lambda: Freezer(name_starts_with="blocks.0.lora_A", until_step=2),
    "gradual": lambda: GradualUnfreezing(every_n_steps=2),
    "operations": lambda: LayerOperations([{**RANK, "value": ["block.0", 0], "max_wait_iters": 2}, RANK]),
    "scheduler": lambda: LoraRankScheduler([{"step": 2, "rank_pattern": {"blocks.0": 0}}]),
}
NAMES = ("Adafactor", "Muon")  # of which older versions of torch lack one
OPTIMIZERS = {name: getattr(torch.optim, name) for name in NAMES if hasattr(torch.optim, name)}


def network() -> nn.Module:
    """Block 1 waits at rank 0; the weight of the head trains beside LoRA."""
    config = {"r": 4, "target_modules": ["blocks.0", "blocks.1"], "rank_pattern": {"blocks.1": 0}}
    model = apply_lora(Blocks(), config)
    model.head.weight.requires_grad_(True)
    return model


def fit(namespace: str, kind: str, optimizer: str, num_ranks: int) -> dict[str, torch.Tensor]:
    rank, options = int(os.environ.get("RANK", 0)), {}
    if num_ranks > 1:
        strategy = import_module(f"{namespace}.strategies").DDPStrategy(process_group_backend="gloo")
        options = {"devices": num_ranks, "strategy": strategy}
    module = regression(
        namespace,
        network,
        lambda p: OPTIMIZERS[optimizer]([each for each in p if each.requires_grad], lr=0.01),
    )
    run = trainer(namespace, callbacks=[CALLBACKS[kind]()], max_epochs=2, **options)
    run.fit(module, batches(32, rank, num_ranks), batches(32, rank, num_ranks))
    return dict(module.state_dict())


def fit_all(namespace: str, num_ranks: int) -> list[dict[str, torch.Tensor]]:
    return [fit(namespace, kind, optimizer, num_ranks) for kind in CALLBACKS for optimizer in OPTIMIZERS]


@pytest.mark.wide
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_two_ranks_equal_one_process(namespace: str, tmp_path: Path) -> None:
    """Whatever callback there is, with Adafactor and with Muon."""
    alone = fit_all(namespace, 1)

    for ours, one, other in zip(alone, *run_ranks(fit_all, tmp_path, 2, namespace, 2), strict=True):
        assert same(one, other)
        assert ours.keys() == one.keys()
        assert all(torch.allclose(ours[key], one[key], atol=1.0e-5) for key in ours)
