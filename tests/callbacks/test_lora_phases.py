"""LoraPhases in real Trainers: what the label says is what trains, at every step."""

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lighter_freezers import (
    GPT,
    Freezer,
    GPTModule,
    LoraPhases,
    apply_lora,
    create_layerwise_lora_config,
    create_phased_lora_config,
)
from tests.lab import recorder, trainer

LONE = "pytorch_lightning"
CONFIG = {"n_layer": 4, "n_embd": 8, "n_head": 2, "block_size": 8, "vocab_size": 16}
BOTH = ["attention", "mlp"]
STEPS = 12  # three epochs of four batches


class Tokens(Dataset[Any]):
    def __init__(self) -> None:
        self.tokens = torch.randint(16, (16, 9), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index, :-1], "targets": self.tokens[index, 1:]}


def loader() -> DataLoader[Any]:
    return DataLoader(Tokens(), batch_size=4)


def module(targets: tuple[str, ...] = ("c_attn", "c_fc"), config: dict[str, Any] | None = None) -> GPTModule:
    torch.manual_seed(0)
    network = apply_lora(GPT(CONFIG), {"r": 2, "target_modules": list(targets), **(config or {})})
    return GPTModule(network, optimizer=torch.optim.AdamW(network.parameters(), lr=0.01))


def moved_layers(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """`attn.2` and the like, of every tensor that differs; blind to flags."""
    changed = [name.split(".") for name in before if not torch.equal(before[name], after[name])]
    return {f"{parts[parts.index('h') + 2]}.{parts[parts.index('h') + 1]}" for parts in changed}


def moves(callbacks: list[Any], built: GPTModule | None = None, **options: Any) -> list[set[str]]:
    """What moved in each optimizer step."""
    fitted_module = built or module()
    states = recorder(
        LONE, lambda _, m: {k: v.clone() for k, v in m.state_dict().items()}, "on_train_batch_start"
    )
    final = {"max_epochs": 3, "limit_val_batches": 0, **options}
    trainer(LONE, callbacks=[*callbacks, states], **final).fit(fitted_module, loader(), loader())
    values = [*states.seen, dict(fitted_module.state_dict())]
    return [moved_layers(one, other) for one, other in zip(values, values[1:], strict=False)]


def layers(parts: str, blocks: range = range(4)) -> set[str]:
    kinds = {"attn": ["attn"], "mlp": ["mlp"], "both": ["attn", "mlp"]}[parts]
    return {f"{kind}.{block}" for kind in kinds for block in blocks}


@pytest.mark.parametrize(
    ("strategy", "order"),
    [
        ("both->mlp->attn", ("both", "mlp", "attn")),
        ("attn->mlp->both", ("attn", "mlp", "both")),
        ("both->mlp->both", ("both", "mlp", "both")),
    ],
)
def test_a_strategy_does_what_its_name_says(strategy: str, order: tuple[str, str, str]) -> None:
    """In this order, weights of these layers move and no others."""
    first, second, third = map(layers, order)

    assert moves([LoraPhases(strategy, 4, 9)]) == [first] * 4 + [second] * 5 + [third] * 3


def test_early_then_late() -> None:
    """The late half does train."""
    early, late = layers("both", range(2)), layers("both", range(2, 4))

    assert moves([LoraPhases("early->late", phase1_end=5)]) == [early] * 5 + [late] * 7


def test_free_phases() -> None:
    """Modules and blocks as one likes, an embedding too; `end_step` may be left out."""
    phases = [
        {"start_step": 0, "active_modules": "attention", "layer_range": [1, 2]},
        {"start_step": 3, "end_step": 6, "active_modules": BOTH, "layer_range": [0, 0]},
        {"start_step": 6, "end_step": None, "active_modules": ["mlp"]},
    ]

    assert moves([LoraPhases(phases=phases)]) == (
        [{"attn.1", "attn.2"}] * 3 + [{"attn.0", "mlp.0"}] * 3 + [layers("mlp")] * 6
    )


def test_an_embedding_is_called_by_its_name() -> None:
    """And whatever else LoRA put on a layer goes with it: magnitudes of DoRA."""
    built = module(("wte", "c_attn"), {"use_dora": True})
    phases = [
        {"start_step": 0, "active_modules": ["wte"]},
        {"start_step": 2, "active_modules": ["attention"]},
    ]
    trained = recorder(LONE, lambda _, m: {n for n, p in m.named_parameters() if p.requires_grad})
    trainer(LONE, callbacks=[LoraPhases(phases=phases), trained], limit_val_batches=0).fit(
        built, loader(), loader()
    )

    adapters = {name for name in dict(built.named_parameters()) if "lora_" in name}
    embedding = {name for name in adapters if ".wte." in name}
    assert len(embedding) == 3
    assert trained.seen == [embedding] * 2 + [adapters - embedding] * 2


def test_the_helpers_of_the_guide() -> None:
    """Their defaults are those of the guide; a phase that is None is left out."""
    assert create_phased_lora_config() == [
        {"start_step": 0, "end_step": 100, "active_modules": ["attention"], "layer_range": None},
        {"start_step": 100, "end_step": 200, "active_modules": ["mlp"], "layer_range": None},
        {"start_step": 200, "end_step": None, "active_modules": BOTH, "layer_range": None},
    ]
    assert create_layerwise_lora_config() == [
        {"start_step": 0, "end_step": 200, "active_modules": BOTH, "layer_range": [0, 10]},
        {"start_step": 200, "end_step": None, "active_modules": BOTH, "layer_range": [11, 21]},
    ]
    phases = create_phased_lora_config((0, 4), (4, None), None, phase1_modules=BOTH)
    assert moves([LoraPhases(phases=phases)]) == [layers("both")] * 4 + [layers("mlp")] * 8
    halves = create_layerwise_lora_config(4, (0, 5), (5, None))
    assert moves([LoraPhases(halves)]) == moves([LoraPhases("early->late", phase1_end=5)])


@pytest.mark.parametrize(("optimizer_state", "steps"), [("keep", [4, 4, 12]), ("reset", [4, None, 8])])
def test_the_optimizer_state_of_a_resting_adapter(optimizer_state: Any, steps: list[int | None]) -> None:
    """Kept as it was, or forgotten: Adam counts the steps of each parameter."""
    built = module()
    weight = built.network.transformer.h[0].attn.c_attn.lora_B["default"].weight

    def adam_steps(t: Any, _: Any) -> int | None:
        state = t.optimizers[0].state.get(weight, {})
        return int(state["step"]) if "step" in state else None

    seen = recorder(LONE, adam_steps)
    phases = LoraPhases("both->mlp->both", 4, 8, optimizer_state=optimizer_state)
    trainer(LONE, callbacks=[phases, seen], max_epochs=4, limit_val_batches=0).fit(built, loader(), loader())

    assert [seen.seen[index] for index in (3, 7, 15)] == steps


def test_a_resting_adapter_leaves_the_optimizer() -> None:
    """`optimizer_state: free`: neither state nor a place in a group until it trains, as exact as `reset`."""
    weights = {}
    for optimizer_state in ("reset", "free"):
        built = module()
        rested = built.network.transformer.h[0].attn.c_attn.lora_B["default"].weight

        def is_known(t: Any, _: Any, rested: Any = rested) -> tuple[bool, bool]:
            [optimizer] = t.optimizers
            in_group = any(each is rested for group in optimizer.param_groups for each in group["params"])
            return in_group, bool(optimizer.state.get(rested))

        seen = recorder(LONE, is_known)
        phases = LoraPhases("both->mlp->both", 4, 8, optimizer_state=optimizer_state)
        trainer(LONE, callbacks=[phases, seen], max_epochs=3, limit_val_batches=0).fit(
            built, loader(), loader()
        )
        rests = (optimizer_state == "reset", False)
        assert seen.seen == [(True, True)] * 4 + [rests] * 4 + [(True, True)] * 4
        weights[optimizer_state] = rested.detach()
    assert torch.equal(weights["reset"], weights["free"])


def test_a_freezer_beside_it_holds_too() -> None:
    """They compose: what a Freezer holds does not train in its phase."""
    freezer = Freezer(patterns="layers:attn.0", until_step=6)
    expected = [layers("attn") - {"attn.0"}] * 4 + [layers("mlp")] * 4 + [layers("both")] * 4

    assert moves([LoraPhases("attn->mlp->both", 4, 8), freezer]) == expected


def test_each_phase_says_itself_and_logs_one_aligned_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same columns in each row, 0 where nothing trains: no series slips, and none is a slope."""
    from pytorch_lightning.loggers import CSVLogger

    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    caplog.set_level(logging.INFO, "lighter_freezers")
    logger = CSVLogger(tmp_path, name="", version="run")
    moves([LoraPhases("early->late", phase1_end=5)], logger=logger)
    said = [record.getMessage() for record in caplog.records if "LoRA phase" in record.getMessage()]
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["lora_phases/phase"]]

    assert said == [
        "step 0: LoRA phase 1 of 2 trains attention and mlp of blocks 0-1, 288 parameters",
        "step 5: LoRA phase 2 of 2 trains attention and mlp of blocks 2-3, 288 parameters",
    ]
    assert [(row["step"], row["lora_phases/phase"]) for row in rows] == [("0", "1"), ("4", "1"), ("5", "2")]
    for row, active in zip(rows, (range(2), range(2), range(2, 4)), strict=True):
        for layer in layers("both"):
            assert float(row[f"lora_phases/{layer}"]) == (int(layer[-1]) in active)


def test_a_resumed_run_is_in_the_right_phase(tmp_path: Path) -> None:
    """Bit-equal to the uninterrupted one, from the middle of a phase."""
    finals = []
    for resume_from in (None, tmp_path / "cut.ckpt"):
        built = module()
        if resume_from is not None:
            first = trainer(LONE, callbacks=[LoraPhases("both->mlp->attn", 2, 6)], limit_val_batches=0)
            first.fit(module(), loader(), loader())
            first.save_checkpoint(resume_from)
        phases = LoraPhases("both->mlp->attn", 2, 6)
        trainer(LONE, callbacks=[phases], max_epochs=3, limit_val_batches=0).fit(
            built, loader(), loader(), ckpt_path=resume_from
        )
        finals.append(built.state_dict())

    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[0])


def phase(start: Any = 0, modules: Any = "attention", **more: Any) -> dict[str, Any]:
    return {"start_step": start, "active_modules": modules, **more}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Unknown strategy None"),
        ({"strategy": "both->attn->mlp"}, ValueError, "Closest: 'both->mlp->attn'"),
        ({"strategy": "both->mlp->attn", "phase1_end": 3}, ValueError, "give phase1_end and phase2_end"),
        ({"strategy": "early->late"}, ValueError, "has 2 phases: give phase1_end, steps above 0"),
        ({"strategy": "early->late", "phase1_end": 3, "phase2_end": 5}, ValueError, "leave phase2_end out"),
        ({"strategy": "both->mlp->attn", "phase1_end": 5, "phase2_end": 5}, ValueError, "is not before"),
        ({"strategy": "both->mlp->attn", "phase1_end": "5", "phase2_end": 9}, TypeError, "Remove the quotes"),
        ({"strategy": "early->late", "phases": [phase()]}, ValueError, "strategy would too"),
        ({"strategy": [phase()], "phases": [phase()]}, ValueError, "Give one of them"),
        ({"strategy": [phase()], "phase1_end": 3}, ValueError, "phase1_end would too"),
        ({"strategy": [phase(2)]}, ValueError, "must start at step 0"),
        ({"phases": []}, TypeError, "must be a list of phases"),
        ({"phases": ["mlp"]}, TypeError, r"phases\[0\] must be a mapping"),
        ({"phases": [phase(2)]}, ValueError, "must start at step 0"),
        ({"phases": [phase(end_step=4), phase(6)]}, ValueError, "gap of 2 steps"),
        ({"phases": [phase(end_step=7), phase(6)]}, ValueError, "overlap of 1 steps"),
        ({"phases": [phase(), phase(6, end_step=9)]}, ValueError, "what trains from step 9 on. Leave it out"),
        ({"phases": [phase(), phase(6), phase(3)]}, ValueError, "order them by step"),
        ({"phases": [phase(end_step=0)]}, ValueError, "before or where it starts"),
        ({"phases": [{"active_modules": "mlp"}]}, ValueError, "needs start_step"),
        ({"phases": [phase(modules=3)]}, TypeError, "active_modules must be a list"),
        ({"phases": [phase(layer_range=[3, 1])]}, ValueError, "layer_range must be"),
        ({"phases": [phase(layer_range=3)]}, TypeError, "layer_range must be"),
        ({"phases": [phase(modul="mlp")]}, ValueError, "does not know 'modul'. Closest: active_modules"),
        ({"phases": [phase()], "optimizer_state": "drop"}, ValueError, "must be one of keep, reset"),
    ],
)
def test_what_cannot_be_meant_is_an_error(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """When the callback is made."""
    with pytest.raises(error, match=message):
        LoraPhases(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"strategy": "both->mlp->attn", "phase1_end": 1, "phase2_end": 2},
            "'mlp', but there is no LoRA on it",
        ),
        ({"phases": [phase(modules="atention")]}, "Closest: 'attention'"),
        ({"phases": [phase(layer_range=[2, 7])]}, "there are 4: 0 to 3"),
        ({"phases": [phase(layer_range=[5, 7])]}, "no LoRA on it in blocks 5-7"),
        ({"phases": [phase()], "adapter_name": "other"}, "has no LoRA adapter 'other'"),
    ],
)
def test_what_the_model_does_not_have_is_an_error_before_training(
    arguments: dict[str, Any], message: str
) -> None:
    """LoRA on the attention alone."""
    fit = trainer(LONE, callbacks=[LoraPhases(**arguments)])
    with pytest.raises(ValueError, match=message):
        fit.fit(module(("c_attn",)), loader(), loader())
    assert fit.global_step == 0


def test_an_adapter_that_trains_in_no_phase_is_mentioned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be meant."""
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    moves([LoraPhases("both->mlp->attn", 1, 2)], module(("c_attn", "c_fc", "wpe")), max_epochs=1)

    assert "LoRA on wpe trains in no phase" in caplog.text
