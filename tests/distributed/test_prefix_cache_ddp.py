"""Two gloo processes share one store: bit-equal to a run without it, and nothing is computed twice."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lighter_freezers import Freezer, PrefixCache
from tests.distributed.run_ranks import run_ranks
from tests.lab import batches, recorder, regression, trainer
from tests.prefix.block_nets import Blocks

EPOCHS = 4


def fit(folder: str) -> dict[str, Any]:
    """Train on rows that a sampler deals out anew each epoch; with a folder, with a cache there."""
    from pytorch_lightning.strategies import DDPStrategy

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lighter_freezers").addHandler(handler)
    module = regression("pytorch_lightning", Blocks)
    loader = DataLoader(batches(16).dataset, batch_size=4, shuffle=True)
    seen = recorder("pytorch_lightning", lambda t, _: float(t.callback_metrics["train/batch_loss"]))
    freezer = Freezer(name_starts_with=["stem", "blocks.0.", "blocks.1."])
    trainer(
        "pytorch_lightning",
        callbacks=[freezer, seen, *([PrefixCache(folder)] if folder else [])],
        max_epochs=EPOCHS,
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
        use_distributed_sampler=True,
        limit_val_batches=0,
    ).fit(module, loader, loader)
    return {"weights": dict(module.state_dict()), "losses": torch.tensor(seen.seen), "said": said}


def both(folder: str) -> list[dict[str, Any]]:
    """Without a cache, then with one, in the same pair of processes."""
    return [fit(""), fit(folder)]


def test_two_ranks_share_a_store(tmp_path: Path) -> None:
    ranks = run_ranks(both, tmp_path, 2, str(tmp_path / "rows"))
    for plain, cached in ranks:
        assert torch.equal(plain["losses"], cached["losses"])
        assert all(torch.equal(plain["weights"][key], cached["weights"][key]) for key in plain["weights"])
    first = [text for text in ranks[0][1]["said"] if "served" in text]
    assert ["served 0 %" in first[0], *("served 100 %" in text for text in first[1:])] == [True] * EPOCHS
    assert not [text for text in ranks[1][1]["said"] if "served" in text]
    assert "from 16 rows" in first[-1]
