"""GradualUnfreezing in real Trainers: which weights move at which step, and at which rate."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import lr_scheduler as lrs

from lighter_freezers import GPT, Freezer, FreezeStateLogger, GradualUnfreezing, apply_lora
from tests.callbacks.block_net import BLOCKS, EVERYTHING, BlockNet, lower, moves, part_of, upper
from tests.lab import NAMESPACES, adamw, batches, recorder, regression, trainer

LONE = "pytorch_lightning"
ALL = set(EVERYTHING)
LATE = "GradualUnfreezing(top-down, every 2 epochs): block 1, block 0, embeddings would thaw after the run"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_one_block_more_each_epoch_from_the_top(namespace: str) -> None:
    """First the head and its norm alone, as in the paper; the embeddings with the last block."""
    expected = [upper(0), upper(1), upper(2), upper(3), ALL]

    found = moves(namespace, [GradualUnfreezing(every_n_epochs=1)], 5)

    assert found == [parts for parts in expected for _ in range(4)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"every_n_steps": 3}, [upper(0)] * 3 + [upper(1)] * 3 + [upper(2)] * 3 + [upper(3)] * 3),
        ({"every_n_steps": 3, "layers_per_stage": 3}, [upper(0)] * 3 + [upper(3)] * 3 + [ALL] * 6),
        (
            {"every_n_steps": 2, "direction": "bottom-up", "layers_per_stage": 2},
            [upper(0)] * 2 + [lower(2)] * 2 + [ALL] * 8,
        ),
        ({"every_n_epochs": 2, "layers_per_stage": 4}, [upper(0)] * 8 + [ALL] * 4),
        ({"total_epochs": 3}, [upper(0)] * 4 + [upper(2)] * 4 + [ALL] * 4),
        ({"total_epochs": 2}, [upper(0)] * 4 + [ALL] * 8),
        ({"total_epochs": 1}, [ALL] * 12),
        (
            {"every_n_steps": 2, "unfreeze_embeddings": 1},
            [upper(0)] * 2 + [upper(min(n // 2, 4), "stem") for n in range(2, 12)],
        ),
        ({"every_n_steps": 1, "unfreeze_embeddings": "never"}, [upper(min(n, 4)) for n in range(12)]),
        ({"every_n_steps": 1, "unfreeze_embeddings": 9}, [upper(min(n, 4)) for n in range(9)] + [ALL] * 3),
        ({"every_n_steps": 1, "unfreeze_embeddings": 0}, [upper(min(n, 4), "stem") for n in range(12)]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",  # a set has no order of its own
)
def test_each_argument_does_what_it_says(arguments: dict[str, Any], expected: list[set[str]]) -> None:
    """In twelve steps, four to an epoch."""
    found = moves(LONE, [GradualUnfreezing(**arguments)], 3)

    assert found == expected


def test_the_schedule_of_the_gradual_unfreezer_of_twelve_layers_and_ten_epochs() -> None:
    """The published example: the head in epoch 1, half in epoch 5, all in epoch 10."""
    network = GPT({"n_layer": 12, "n_embd": 4, "n_head": 1, "block_size": 4, "vocab_size": 5})
    rules = GradualUnfreezing(total_epochs=10).rules_for(network)
    counted = [
        sum(
            len({name.split(".")[2] for name in rule.selector.names if ".h." in name})
            for rule in rules
            if rule.schedule.until_epoch is not None and rule.schedule.until_epoch <= epoch
        )
        for epoch in range(10)
    ]

    assert counted == [0, 1, 3, 4, 6, 7, 8, 9, 10, 12]


def test_on_a_plateau_as_torch_counts_them() -> None:
    """One stage more at each step at which `ReduceLROnPlateau` would reduce, and none in between."""
    arguments = {"monitor": "val/loss", "patience": 2, "min_delta": 0.03}
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = lrs.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, threshold=0.03, threshold_mode="abs", eps=0.0
    )
    wanted: list[int] = []

    def reduce(fit: Any, _: Any) -> None:
        reference.step(float(fit.callback_metrics["val/loss"]))
        wanted.append(-round(float(torch.log2(torch.tensor(reference.get_last_lr()[0])))))

    watcher = recorder(LONE, reduce, "on_validation_end")
    found = moves(LONE, [GradualUnfreezing(plateau=arguments), watcher], 18, adamw)

    by_epoch = [len(parts & set(BLOCKS)) for parts in found[4::4]]
    assert by_epoch == [min(number, 4) for number in wanted[:-1]]
    assert by_epoch[-1] == 4
    assert sorted(set(by_epoch)) == [0, 1, 2, 3, 4]
    assert any(one == 0 for one in by_epoch[2:]), "progress has to delay it once, or nothing is tested"


def rates_of(parts: list[str], callback: Any, scheduler: Any, num_epochs: int = 5) -> Iterator[list[float]]:
    """The learning rate of each part at each optimizer step."""

    def read(fit: Any, module: Any) -> dict[str, float]:
        names = {id(parameter): part_of(name) for name, parameter in module.named_parameters()}
        groups = fit.optimizers[0].param_groups
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}

    seen = recorder(LONE, read, "on_before_optimizer_step")
    module = regression(LONE, BlockNet, scheduler=scheduler)
    trainer(LONE, callbacks=[callback, seen], max_epochs=num_epochs).fit(module, batches(), batches())
    for rates in seen.seen:
        yield [rates[part] for part in parts]


def test_rates_decay_with_depth_whatever_the_scheduler_does() -> None:
    """A thawed layer has the scheduler's rate divided by 2.6 for each layer above it."""
    callback = GradualUnfreezing(every_n_epochs=1, lr_decay=2.6, layers_per_stage=2)
    parts = ["head", "norm", "block 3", "block 2", "block 1", "block 0", "stem"]

    def scheduler(optimizer: Any) -> Any:
        warm = lrs.LambdaLR(optimizer, lambda step: (step + 1) / 20)
        return {"scheduler": warm, "interval": "step"}

    for step, rates in enumerate(rates_of(parts, callback, scheduler)):
        scheduled = 0.05 * (step + 1) / 20
        depths = [0, 0, 1, 2, 3, 4, 5][: {0: 2, 1: 4}.get(step // 4, 7)]
        assert rates[: len(depths)] == pytest.approx([scheduled / 2.6**depth for depth in depths])


def test_a_thawed_block_warms_up() -> None:
    """From zero, in so many steps, to the rate of its depth."""
    callback = GradualUnfreezing(every_n_steps=4, layers_per_stage=4, lr_decay=2.0, warmup_steps=4)
    found = list(rates_of(["head", "block 3", "stem"], callback, None, 3))

    for rates, share in zip(found[4:9], (0.25, 0.5, 0.75, 1.0, 1.0), strict=True):
        assert rates == pytest.approx([0.05, 0.025 * share, 0.05 / 32 * share])


def test_learning_rates_by_depth_without_any_freezing() -> None:
    """Bit for bit the weights of a plain loop with a parameter group for each layer."""
    module = regression(LONE, BlockNet)
    trainer(LONE, callbacks=[GradualUnfreezing(lr_decay=2.5)], max_epochs=2).fit(module, batches(), batches())

    reference = regression(LONE, BlockNet)
    depths = {"head": 0, "norm": 0, "stem": 5} | {block: 4 - i for i, block in enumerate(BLOCKS)}
    groups = [
        {"params": [parameter], "lr": 0.05 * 2.5 ** -depths[part_of(name)]}
        for name, parameter in reference.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        for batch in batches():
            optimizer.zero_grad()
            reference.loss(batch).backward()
            optimizer.step()

    wanted = reference.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("is_first", [True, False])
def test_it_composes_with_freezers(is_first: bool) -> None:
    """What either holds is frozen, in whatever order they stand."""
    callbacks = [GradualUnfreezing(every_n_steps=1), Freezer(name_starts_with="blocks.2", until_step=5)]
    found = moves(LONE, callbacks if is_first else callbacks[::-1], 2)

    assert (
        found == [upper(min(n, 4), *(["stem"] if n > 3 else [])) - {"block 2"} for n in range(5)] + [ALL] * 3
    )


def test_a_tied_head_trains_from_the_first_step_and_positions_come_last() -> None:
    """The embedding table is the head's weight, so it goes with the head."""
    tied = GPT({"n_layer": 2, "n_embd": 4, "n_head": 1, "block_size": 4, "vocab_size": 5})
    untied = GPT(
        {"n_layer": 2, "n_embd": 4, "n_head": 1, "block_size": 4, "vocab_size": 5, "tie_weights": False}
    )

    def held(network: GPT) -> list[list[str]]:
        rules = GradualUnfreezing(every_n_epochs=1).rules_for(network)
        return [[name for name in rule.selector.names if ".h." not in name] for rule in rules]

    assert held(tied) == [[], ["transformer.wpe.weight"]]
    assert held(untied) == [[], ["transformer.wte.weight", "transformer.wpe.weight"]]


def test_with_lora_in_the_blocks_only_the_first_stage_has_a_block() -> None:
    """Nothing in the head can train; the base stays as frozen as PEFT left it."""

    def network() -> torch.nn.Module:
        return apply_lora(BlockNet(), {"r": 2, "target_modules": ["0", "1", "2", "3"]})

    module = regression(LONE, network)
    seen = recorder(LONE, lambda _, m: {n for n, p in m.named_parameters() if p.requires_grad})
    callback = GradualUnfreezing(every_n_steps=1, lr_decay=2.0)
    trainer(LONE, callbacks=[callback, seen], max_epochs=1).fit(module, batches(), batches())

    trained = [sorted({part_of(name) for name in names}) for names in seen.seen]
    assert trained == [BLOCKS[3 - step :] for step in range(4)]
    assert all("lora_" in name for names in seen.seen for name in names)


def test_the_log_and_the_state_logger_show_it(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A line per stage, and the share that is frozen at each."""
    from pytorch_lightning.loggers import TensorBoardLogger

    callbacks = [GradualUnfreezing(every_n_steps=2), FreezeStateLogger()]
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        moves(LONE, callbacks, 3, logger=TensorBoardLogger(str(tmp_path), name="run"))

    events = EventAccumulator(str(tmp_path / "run/version_0"))
    events.Reload()
    shares = {event.step: event.value for event in events.Scalars("freeze/frozen_share")}
    assert [round(385 * shares[step]) for step in (0, 2, 4, 6, 8)] == [360, 288, 216, 144, 0]
    lines = [record.getMessage() for record in caplog.records if "thawed" in record.getMessage()]
    assert [line.split(" (")[0] for line in lines] == [
        "step 2: thawed blocks.3",
        "step 4: thawed blocks.2",
        "step 6: thawed blocks.1",
        "step 8: thawed stem, blocks.0",
    ]
    assert "held by GradualUnfreezing(top-down, every 2 steps)" in lines[0]


def test_stages_after_the_end_are_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    """A schedule that is longer than the run leaves layers frozen."""
    found = moves(LONE, [GradualUnfreezing(every_n_epochs=2)], 5)

    assert found[-1] == upper(2)
    assert any(LATE in record.getMessage() for record in caplog.records)
    moves(LONE, [GradualUnfreezing(every_n_epochs=1)], 4)
    said = [record.getMessage() for record in caplog.records]
    assert any(": block 0, embeddings would thaw after the run has ended" in line for line in said)
    caplog.clear()
    moves(LONE, [GradualUnfreezing(every_n_epochs=1)], 5)
    moves(LONE, [GradualUnfreezing(plateau={"monitor": "val/loss", "patience": 9})], 1)
    assert not [record for record in caplog.records if "after the run" in record.getMessage()]
