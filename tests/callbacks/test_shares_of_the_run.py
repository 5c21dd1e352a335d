"""Bounds as a share of the run, in every callback: resolved once, kept on resume, refused if unknown."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, LoraPhases, LoraRankScheduler, plan
from tests.callbacks import test_lora_phases as gpt
from tests.callbacks.block_net import BLOCKS, BlockNet, moves, upper
from tests.lab import (
    NAMESPACES,
    Stream,
    TinyNet,
    batches,
    frozen_at_each_step,
    frozen_layers,
    recorder,
    regression,
    trainer,
)

LONE = "pytorch_lightning"
LAYER = {"name_starts_with": "layer2"}
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


@pytest.mark.parametrize(
    ("bounds", "held"),
    [
        ({"until_step": "50%"}, range(6)),
        ({"until_step": "25 %"}, range(3)),
        ({"from_step": "50%"}, range(6, 12)),
        ({"from_step": "25%", "until_step": "75%"}, range(3, 9)),
        ({"windows": [["0%", "25%"], ["50%", "100%"]]}, [*range(3), *range(6, 12)]),
        ({"until_epoch": "34%"}, range(4)),
        ({"until_epoch": "1%"}, range(4)),
        ({"from_epoch": "67%"}, range(8, 12)),
        ({"until_step": "50%", "until_epoch": 1}, range(4)),
    ],
    ids=str,
)
def test_a_freezer(bounds: dict[str, Any], held: Any) -> None:
    """Of twelve steps in three epochs."""
    frozen = frozen_at_each_step(LONE, [Freezer(**LAYER, **bounds)], max_epochs=3)

    assert frozen == [["layer2"] if step in held else [] for step in range(12)]


def test_steps_count_accumulation_and_max_steps() -> None:
    """Two batches a step and five steps make half the run two steps, four batches, long."""
    frozen = frozen_at_each_step(
        LONE, [Freezer(**LAYER, until_step="40%")], max_steps=5, max_epochs=-1, accumulate_grad_batches=2
    )

    assert frozen == [["layer2"]] * 4 + [[]] * 6


def test_gradual_unfreezing() -> None:
    """A stage for each quarter of the run."""
    found = moves(LONE, [GradualUnfreezing(every_n_steps="25%")], 3)

    assert [len(parts & set(BLOCKS)) for parts in found] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert found[0] == upper(0)


def test_lora_phases_ranks_and_operations() -> None:
    """Phases end, ranks change and operations come at their share of the run."""
    phases = LoraPhases("attn->mlp->both", phase1_end="25%", phase2_end="50%")
    ranks = LoraRankScheduler([{"step": "75%", "rank_pattern": {"attn.0": 1}}])
    operation = LayerOperations([{"name": "set_lr", "value": 0.5, "max_wait_iters": "50%"}])
    seen = recorder(
        LONE,
        lambda fit, m: (
            {"attn" if ".attn." in name else "mlp" for name, p in m.named_parameters() if p.requires_grad},
            next(len(p) for name, p in m.named_parameters() if ".0.attn." in name and "lora_A" in name),
            fit.optimizers[0].param_groups[0]["lr"],
        ),
    )
    fit = trainer(LONE, callbacks=[phases, ranks, operation, seen], max_epochs=3)
    fit.fit(gpt.module(), gpt.loader())

    assert [parts for parts, _, _ in seen.seen] == [{"attn"}] * 3 + [{"mlp"}] * 3 + [{"attn", "mlp"}] * 6
    assert [rank for _, rank, _ in seen.seen] == [2] * 9 + [1] * 3
    assert [rate for _, _, rate in seen.seen] == [0.01] * 6 + [0.5] * 6


def resumed(folder: Path, epochs: int) -> tuple[list[list[str]], list[str]]:
    """Cut a run of two epochs after step 4, and go on with another length; what froze, and the warnings."""
    first = trainer(LONE, callbacks=[Freezer(**LAYER, until_step="75%")], max_epochs=2, limit_train_batches=4)
    cut = recorder(LONE, lambda t, _: t.save_checkpoint(folder / "cut.ckpt") if t.global_step == 4 else None)
    first.callbacks.append(cut)
    first.fit(regression(LONE), batches())
    seen = recorder(LONE, lambda _, module: frozen_layers(module))
    second = trainer(LONE, callbacks=[Freezer(**LAYER, until_step="75%"), seen], max_epochs=epochs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second.fit(regression(LONE), batches(), ckpt_path=folder / "cut.ckpt")
    return seen.seen, [str(each.message) for each in caught if "steps" in str(each.message)]


def test_a_resumed_run_keeps_the_length_of_the_first(tmp_path: Path) -> None:
    """75 % of eight steps stay step 6 when the run is now twelve steps long, with a warning."""
    same, silence = resumed(tmp_path, 2)
    longer, warned = resumed(tmp_path, 3)

    assert same == [["layer2"]] * 2 + [[]] * 2
    assert longer == [["layer2"]] * 2 + [[]] * 6
    assert not silence
    assert "The run now has 12 steps, and 8 when it began: 75%" in warned[0]


@pytest.mark.parametrize(
    ("options", "data", "reason"),
    [
        ({"max_epochs": 3}, Stream, "no length"),
        ({"max_epochs": -1}, batches, "neither max_epochs nor max_steps"),
    ],
    ids=["stream", "endless"],
)
def test_a_run_of_unknown_length_is_refused(
    options: dict[str, Any], data: Callable[[], Any], reason: str
) -> None:
    """Before the first step, with the reason and the way out."""
    loader = data() if data is batches else torch.utils.data.DataLoader(data(), batch_size=None)
    fit = trainer(LONE, callbacks=[Freezer(**LAYER, until_step="30%")], **options)

    with pytest.raises(RuntimeError, match=rf"30% of the run .*{reason}.*Write a number of steps"):
        fit.fit(regression(LONE), loader)
    assert fit.global_step == 0


@pytest.mark.parametrize("max_epochs", [-1, 3])
@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize(
    "callback",
    [
        lambda: Freezer(**LAYER, until_epoch="30%"),
        lambda: Freezer(names="layer2.weight", rows=0, from_epoch="30%"),
        lambda: GradualUnfreezing(every_n_epochs="30%"),
        lambda: GradualUnfreezing(stages=[{"thaw": "head", "until_epoch": "30%"}, {"thaw": "*"}]),
    ],
    ids=["Freezer", "rows", "GradualUnfreezing", "stages"],
)
def test_epochs_are_unknown_where_a_stream_ends_at_max_steps(
    callback: Any, namespace: str, max_epochs: int
) -> None:
    """A share of them would never come."""
    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    fit = trainer(namespace, callbacks=[callback()], max_steps=8, max_epochs=max_epochs)

    with pytest.raises(RuntimeError, match="30% of the epochs .*max_steps.*Write 30% of the steps"):
        fit.fit(regression(namespace, BlockNet if "Gradual" in repr(fit.callbacks[0]) else TinyNet), loader)
    assert fit.global_step == 0


def test_epochs_are_known_where_steps_are_not() -> None:
    """A share of the epochs needs max_epochs alone."""
    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    seen = recorder(LONE, lambda _, module: frozen_layers(module))
    trainer(LONE, callbacks=[Freezer(**LAYER, until_epoch="50%"), seen], max_epochs=2).fit(
        regression(LONE), loader
    )

    assert seen.seen == [["layer2"]] * 4 + [[]] * 4


@pytest.mark.parametrize(
    ("bound", "error"),
    [
        ("130%", "between 0% and 100%"),
        ("-5%", "between 0%"),
        ("a%", "between 0%"),
        ("30", "Remove the quotes"),
    ],
)
def test_what_is_no_share_is_an_error(bound: str, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        Freezer(**LAYER, until_step=bound)


def test_the_plan_shows_the_steps() -> None:
    """As the run will have them."""
    fit = trainer(LONE, callbacks=[Freezer(name_starts_with="stem", until_step="50%")], max_epochs=3)
    planned = plan(fit, regression(LONE, BlockNet), batches(), num_rounds=1, num_timed=0)

    assert [phase.step for phase in planned.phases] == [0, 6]
