"""Two gloo processes whose backward pass ends above frozen blocks, against one process."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests.distributed.run_ranks import run_ranks
from tests.engine.effects.test_gradient_cut import LONE, B, below, language_model, meter, tokens
from tests.lab import trainer


def fit(num_ranks: int) -> dict[str, Any]:
    """Six steps, three of them with two frozen blocks below a tied head that trains."""
    from pytorch_lightning.strategies import DDPStrategy

    rank = int(os.environ["RANK"]) if num_ranks > 1 else 0
    strategy = {"strategy": DDPStrategy(process_group_backend="gloo")} if num_ranks > 1 else {}
    module, flops = language_model(LONE), meter(LONE)
    loader = DataLoader(tokens().dataset[rank::num_ranks], batch_size=B // num_ranks)
    freezer = below(2, until_step=3, optimizer_state="free")
    trainer(LONE, callbacks=[freezer, flops], devices=num_ranks, **strategy).fit(module, loader)
    return {"weights": dict(module.state_dict()), "flops": flops.seen}


@pytest.mark.wide
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Bit-equal to each other, equal to the single process but for the order of a sum, and cut alike."""
    torch.set_num_threads(1)
    first, second = run_ranks(fit, tmp_path, 2, 2)
    alone = fit(1)

    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert all(
        torch.allclose(value, alone["weights"][key], atol=2e-4) for key, value in first["weights"].items()
    )
    assert first["flops"] == [flops // 2 for flops in alone["flops"]]
    assert alone["flops"][2] < 0.75 * alone["flops"][3]
