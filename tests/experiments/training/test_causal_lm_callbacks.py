"""Every callback of the package on a CausalLMModule, all in one fit."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lighter_freezers import Freezer, FreezeStateLogger, LayerOperations, LoraPhases, LoraRankScheduler
from lighter_freezers.lora.sites import find_lora_sites
from tests.experiments.training.causal_lms import ARCHITECTURES, causal_lm, module, training_loader
from tests.lab import NAMESPACES, first_now, recorder, trainer


def state(_: Any, model: Any) -> tuple[dict[str, int], set[str]]:
    """The rank of each layer with LoRA, and the layers whose factors train."""
    sites = find_lora_sites(model).values()
    return (
        {site.layer: site.factors.rank for site in sites},
        {site.layer for site in sites if site.factors.parameters[0].requires_grad},
    )


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("architecture", first_now(ARCHITECTURES))
def test_all_callbacks_work_together(namespace: str, architecture: str, tmp_path: Path) -> None:
    """Ranks, phases, operations and freezers on one module, with checkpointed activations."""
    seen = recorder(namespace, state)
    callbacks = [
        LoraRankScheduler(
            [{"step": 2, "rank_pattern": {"attn.*": 2}}, {"step": 5, "rank_pattern": {"mlp.0": 6}}]
        ),
        LoraPhases("both->mlp->attn", phase1_end=3, phase2_end=6),
        LayerOperations([{"name": "freeze_layer", "value": "mlp.1", "max_wait_iters": 4}]),
        Freezer(patterns="layers:mlp.2", until_step=4),
        FreezeStateLogger(),
        seen,
    ]
    lora = {"r": 4, "lora_dropout": 0.1, "target": "both"}
    model = module(
        namespace, network=causal_lm(architecture), lora=lora, gradient_checkpointing=True, learning_rate=0.02
    )
    loggers = import_module(f"{namespace}.loggers")
    run = trainer(namespace, callbacks=callbacks, max_epochs=2, logger=loggers.CSVLogger(tmp_path))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run.fit(model, training_loader(), training_loader(6, 4, 1))

    attention, mlp = {"attn.0", "attn.1", "attn.2"}, {"mlp.0", "mlp.1", "mlp.2"}
    assert [trains for _, trains in seen.seen] == [
        *[attention | mlp - {"mlp.2"}] * 3,  # phase 1; the Freezer holds mlp.2 until step 4
        mlp - {"mlp.2"},
        *[mlp - {"mlp.1"}] * 2,  # the operation holds mlp.1 from step 4
        *[attention] * 2,
    ]
    ranks = [{ranks["attn.1"] for ranks, _ in seen.seen[:2]}, {ranks["attn.1"] for ranks, _ in seen.seen[2:]}]
    assert ranks == [{4}, {2}]
    assert [ranks["mlp.0"] for ranks, _ in seen.seen] == [4] * 5 + [6] * 3
    base = {name for name in before if ".lora_" not in name}
    assert all((model.state_dict()[name] == before[name]).all() for name in base)
    assert run.callback_metrics["val/perplexity"] > 1
