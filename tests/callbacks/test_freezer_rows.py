"""`rows:` of an embedding and of a head tied to it: only these rows move, exactly."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighter_freezers import Freezer, GradualUnfreezing
from tests.callbacks.test_freezer_resume import same
from tests.distributed.run_ranks import run_ranks
from tests.lab import NAMESPACES, ResumableLoader, adamw, recorder, regression, sgd, trainer

LONE = "pytorch_lightning"
VOCABULARY, WIDE = 12, 6
NEW = [10, 11]
pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`",
    "ignore:The dirpath has changed",
    "ignore:Checkpoint directory .* is not empty",
)


class Tied(nn.Module):
    """An embedding that is the head's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, WIDE)
        self.block = nn.Linear(WIDE, WIDE)
        self.head = nn.Linear(WIDE, VOCABULARY, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.block(self.wte(tokens)))).mean((1, 2))[:, None]


def tokens(rank: int = 0, num_ranks: int = 1, batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(VOCABULARY, (16, 5), generator=generator)
    targets = torch.randn(16, 1, generator=generator)
    return DataLoader(TensorDataset(inputs[rank::num_ranks], targets[rank::num_ranks]), batch_size=batch_size)


def moved_rows(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return [row for row in range(VOCABULARY) if not torch.equal(before[row], after[row])]


def rows_by_step(optimizer: Any, namespace: str = LONE, **arguments: Any) -> list[list[int]]:
    """Which rows moved in each of eight steps."""
    bounds = arguments.pop("bounds", {})
    seen = recorder(namespace, lambda _, m: m.network.wte.weight.detach().clone(), "on_train_batch_start")
    module = regression(namespace, Tied, optimizer)
    callback = Freezer(names="wte.weight", **{"rows": NEW, **bounds})
    beside = arguments.pop("beside", [])
    options = {"max_epochs": 2, "gradient_clip_val": 0.5, **arguments}
    trainer(namespace, callbacks=[callback, *beside, seen], **options).fit(module, tokens())
    values = [*seen.seen, module.network.wte.weight.detach()]
    return [moved_rows(one, other) for one, other in zip(values, values[1:], strict=False)]


OPTIMIZERS = {
    "sgd": sgd,
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "adam, no foreach": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5, foreach=False),
}


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_these_rows_move(namespace: str, optimizer: str) -> None:
    """Whatever weight decay and momentum would do, through the embedding and through the head."""
    assert rows_by_step(OPTIMIZERS[optimizer], namespace) == [NEW] * 8


@pytest.mark.parametrize(
    ("bounds", "held"),
    [
        ({"until_step": 3}, range(3)),
        ({"from_step": 2, "until_epoch": 1}, range(2, 4)),
        ({"windows": [[1, 3], [5, 6]]}, [1, 2, 5]),
        ({"until_step": "50%"}, range(4)),
    ],
    ids=str,
)
def test_while_the_schedule_is_active(bounds: dict[str, Any], held: Any) -> None:
    found = rows_by_step(OPTIMIZERS["adamw"], bounds=bounds)

    assert found == [NEW if step in held else list(range(VOCABULARY)) for step in range(8)]


@pytest.mark.parametrize(
    ("rows", "moving"), [("-3:", [9, 10, 11]), ([0, "4:6"], [0, 4, 5]), (-1, [11]), (":1", [0])]
)
def test_ways_to_name_rows(rows: Any, moving: list[int]) -> None:
    assert rows_by_step(OPTIMIZERS["adamw"], bounds={"rows": rows}) == [moving] * 8


@pytest.mark.parametrize("bounds", [{}, {"from_step": 2}], ids=["from the start", "later"])
def test_with_the_optimizer_that_a_stage_brings(bounds: dict[str, Any]) -> None:
    """The weight decay of the new one moves no other row either."""
    new = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    stages = [{"thaw": ["wte", "head"], "until_step": 4}, {"thaw": "*", "optimizer": new}]
    found = rows_by_step(adamw, bounds=bounds, beside=[GradualUnfreezing(stages=stages)])

    assert found[bounds.get("from_step", 0) :] == [NEW] * (8 - bounds.get("from_step", 0))


def test_with_accumulation_and_the_rest_of_the_model() -> None:
    """What these rows and the other parameters do is what they do with the other rows' gradients at zero."""
    assert rows_by_step(sgd, accumulate_grad_batches=2) == [[], NEW] * 4


def test_gradients_of_held_rows_do_not_count_for_clipping() -> None:
    """They are zero when gradients are clipped."""

    def norm(_: Any, module: Any) -> float | None:
        grad = module.network.wte.weight.grad
        return None if grad is None else grad[:10].norm().item()

    norms = recorder(LONE, norm, "on_before_zero_grad")
    module = regression(LONE, Tied, sgd)
    callbacks = [Freezer(names="wte.weight", rows=NEW), norms]
    trainer(LONE, callbacks=callbacks, gradient_clip_val=0.1).fit(module, tokens())

    assert [norm for norm in norms.seen if norm is not None][-3:] == [0.0] * 3


def fit(folder: Path, resume_from: Path | None = None) -> Any:
    from pytorch_lightning.callbacks import ModelCheckpoint

    saver = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    loader = ResumableLoader(tokens().dataset)
    module = regression(LONE, Tied, adamw)
    callbacks = [Freezer(names="wte.weight", rows=NEW, until_step=5), saver]
    run = trainer(LONE, callbacks=callbacks, max_epochs=4, enable_checkpointing=True, default_root_dir=folder)
    run.fit(module, loader, ckpt_path=resume_from)
    return module.state_dict()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    for step in (1, 3, 5, 6):
        assert same(fit(tmp_path / f"from{step}", tmp_path / "whole" / f"step={step}.ckpt"), whole), step


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"names": "wte.weight", "rows": 12}, "has 12 rows, counted from 0, and no row 12"),
        ({"names": "wte.weight", "rows": "20:"}, "0 would move"),
        ({"names": "wte.weight", "rows": ":"}, "12 would move"),
        ({"names": "wte.weight", "rows": "new"}, "row numbers or slices"),
        ({"names": "wte.weight", "rows": []}, "rows is empty"),
        ({"names": "wte.weight", "rows": 1, "unfreeze_lr": 0.1}, "a learning rate has no meaning there"),
        ({"train": "wte", "rows": 1}, "train has no meaning there"),
    ],
    ids=str,
)
def test_errors(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        trainer(LONE, callbacks=[Freezer(**arguments)]).fit(regression(LONE, Tied), tokens())


def test_a_parameter_that_the_user_froze_is_said() -> None:
    module = regression(LONE, Tied)
    module.network.wte.weight.requires_grad = False
    with pytest.raises(RuntimeError, match="No row of network.wte.weight can train"):
        trainer(LONE, callbacks=[Freezer(names="wte.weight", rows=NEW)]).fit(module, tokens())


def test_rows_of_a_lazy_layer_are_refused_before_the_first_batch() -> None:
    """It has none yet; torch would say so in words of its own."""
    module = regression(LONE, lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1)))
    with pytest.raises(ValueError, match="rows: network.0.weight is of a lazy layer"):
        trainer(LONE, callbacks=[Freezer(names="0.weight", rows=NEW)]).fit(module, tokens())


def fit_on_ranks(num_ranks: int) -> Any:
    from pytorch_lightning.strategies import DDPStrategy

    module = regression(LONE, Tied, sgd)
    rank = int(os.environ["RANK"]) if num_ranks > 1 else 0
    strategy = {"strategy": DDPStrategy(process_group_backend="gloo")} if num_ranks > 1 else {}
    callback = Freezer(names="wte.weight", rows=NEW, until_step=6)
    run = trainer(
        LONE, callbacks=[callback], max_epochs=2, devices=num_ranks, gradient_clip_val=0.5, **strategy
    )
    run.fit(module, tokens(rank, num_ranks, 4 // num_ranks))
    return dict(module.state_dict())


@pytest.mark.wide
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    one, other = run_ranks(fit_on_ranks, tmp_path, 2, 2)

    assert same(one, other)
    for name, value in fit_on_ranks(1).items():
        torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-6)
