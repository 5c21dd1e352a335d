"""The four schedules of the layer operations guide, as the guide writes them, with losses that come down."""

import logging
import math
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lighter_freezers import GPT, GPTModule, LayerOperations
from tests.lab import frozen_components, recorder, trainer

CONFIG = {"n_layer": 12, "n_embd": 16, "n_head": 2, "block_size": 8, "vocab_size": 32}
NOW = {"trigger_loss": float("inf"), "max_wait_iters": 0}

COMPLETE: list[dict[str, Any]] = [
    {"name": "freeze_layer", "value": "wte", **NOW},
    {"name": "freeze_layer", "value": "lm_head", **NOW},
    {"name": "set_layer_lora_rank", "value": ["attn.0", 8], "trigger_loss": 3.0, "max_wait_iters": 1000},
    {"name": "set_layer_lora_rank", "value": ["attn.5", 16], "trigger_loss": 2.8, "max_wait_iters": 1000},
    {"name": "set_layer_lora_rank", "value": ["attn.11", 8], "trigger_loss": 2.6, "max_wait_iters": 1000},
    {"name": "unfreeze_layer", "value": "ln_f", "trigger_loss": 2.4, "max_wait_iters": 1500},
    {"name": "set_layer_lora_rank", "value": ["wte", 12], "trigger_loss": 2.2, "max_wait_iters": 1500},
    {"name": "unfreeze_layer", "value": "attn.2", "trigger_loss": 2.0, "max_wait_iters": 2000},
    {"name": "freeze_layer", "value": "mlp.0", "trigger_loss": 1.8, "max_wait_iters": 2000},
]
PROGRESSIVE: list[dict[str, Any]] = [
    {"name": "set_layer_lora_rank", "value": ["attn.6", 4], "trigger_loss": 3.0, "max_wait_iters": 1000},
    {"name": "set_layer_lora_rank", "value": ["attn.6", 8], "trigger_loss": 2.5, "max_wait_iters": 1500},
    {"name": "set_layer_lora_rank", "value": ["attn.6", 16], "trigger_loss": 2.0, "max_wait_iters": 2000},
]
LAYERWISE: list[dict[str, Any]] = [
    {"name": "unfreeze_layer", "value": "attn.11", "trigger_loss": 2.8, "max_wait_iters": 1000},
    {"name": "unfreeze_layer", "value": "attn.10", "trigger_loss": 2.6, "max_wait_iters": 1000},
    {"name": "unfreeze_layer", "value": "attn.9", "trigger_loss": 2.4, "max_wait_iters": 1000},
]
COMPONENTS: list[dict[str, Any]] = [
    *[{"name": "freeze_layer", "value": f"mlp.{i}", **NOW} for i in range(12)],
    *[
        {"name": "unfreeze_layer", "value": f"mlp.{i}", "trigger_loss": 2.0, "max_wait_iters": 1500}
        for i in range(12)
    ],
]


def loader() -> DataLoader[Any]:
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))
    return DataLoader([{"input_ids": row[:-1], "targets": row[1:]} for row in tokens])


def train(
    operations: list[dict[str, Any]], losses: list[float], prepare: Any = None
) -> tuple[GPTModule, list[Any]]:
    """Two batches an epoch, and a validation that logs the next loss; what is frozen at each step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = GPT(CONFIG)
    if prepare is not None:
        prepare(network)
    module = GPTModule(network, optimizer=torch.optim.AdamW(network.parameters(), lr=0.001))
    values = iter(losses)
    module.validation_step = lambda batch, batch_idx: None  # type: ignore[method-assign]
    module.on_validation_epoch_end = lambda: module.log("val/loss", next(values))  # type: ignore[method-assign]
    seen = recorder("pytorch_lightning", lambda _, m: frozen_components(m))
    callbacks = [LayerOperations(operations), seen]
    fit = trainer("pytorch_lightning", callbacks=callbacks, max_epochs=len(losses))
    fit.fit(module, loader(), loader())
    return module, seen.seen


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    caplog.set_level(logging.INFO, "lighter_freezers")
    return lambda: [r.getMessage() for r in caplog.records if ": operation " in r.getMessage()]


def test_the_complete_example(said: Any) -> None:
    """Phase by phase; LoRA on the frozen embedding trains, its weight does not."""
    module, _ = train(COMPLETE, [3.5, 2.9, 2.7, 2.3, 2.3, 1.9, 1.75, 1.75])
    ranks = "set_layer_lora_rank"

    assert said() == [
        "step 0: operation 1 of 9, freeze_layer wte: at once: froze 512 parameters",
        "step 0: operation 2 of 9, freeze_layer lm_head: at once: "
        "no effect, it was frozen already (tied to wte)",
        f"step 4: operation 3 of 9, {ranks} attn.0 8: val/loss 2.9 < 3: LoRA rank 8 for attn.0 (was 0)",
        f"step 6: operation 4 of 9, {ranks} attn.5 16: val/loss 2.7 < 2.8: LoRA rank 16 for attn.5 (was 0)",
        f"step 8: operation 5 of 9, {ranks} attn.11 8: val/loss 2.3 < 2.6: LoRA rank 8 for attn.11 (was 0)",
        "step 8: operation 6 of 9, unfreeze_layer ln_f: val/loss 2.3 < 2.4: no effect, it trained already",
        f"step 12: operation 7 of 9, {ranks} wte 12: val/loss 1.9 < 2.2: LoRA rank 12 for wte (was 0)",
        "step 12: operation 8 of 9, unfreeze_layer attn.2: val/loss 1.9 < 2: no effect, it trained already",
        "step 14: operation 9 of 9, freeze_layer mlp.0: val/loss 1.75 < 1.8: froze 2,048 parameters",
    ]
    embedding = module.network.transformer.wte
    torch.manual_seed(0)
    assert torch.equal(embedding.base_layer.weight, GPT(CONFIG).transformer.wte.weight)
    assert embedding.base_layer.weight is module.network.lm_head.weight
    # PEFT begins A with zeros on an embedding: that it moved shows that it trained
    assert embedding.lora_embedding_A["default"].abs().max() > 0


def test_progressive_rank_scaling(said: Any) -> None:
    """The rank grows in steps."""
    module, _ = train(PROGRESSIVE, [2.9, 2.4, 1.9, 1.9])

    assert said() == [
        "step 2: operation 1 of 3, set_layer_lora_rank attn.6 4: val/loss 2.9 < 3: "
        "LoRA rank 4 for attn.6 (was 0)",
        "step 4: operation 2 of 3, set_layer_lora_rank attn.6 8: val/loss 2.4 < 2.5: "
        "LoRA rank 8 for attn.6 (was 4)",
        "step 6: operation 3 of 3, set_layer_lora_rank attn.6 16: val/loss 1.9 < 2: "
        "LoRA rank 16 for attn.6 (was 8)",
    ]
    layer = module.network.transformer.h[6].attn.c_attn
    assert layer.lora_A["default"].weight.shape == (16, 16)
    assert torch.linalg.matrix_rank(layer.get_delta_weight("default").detach()) > 8  # all components train


def test_layerwise_unfreezing(said: Any) -> None:
    """Attentions that the user froze, from the top down, whatever the optimizer was built from."""

    def freeze_attentions(network: GPT) -> None:
        for block in network.transformer.h:
            block.attn.requires_grad_(False)

    _, frozen = train(LAYERWISE, [2.7, 2.5, 2.3, 2.3], freeze_attentions)
    attentions = [f"attn.{i}" for i in range(12)]

    assert frozen == [attentions] * 2 + [attentions[:11]] * 2 + [attentions[:10]] * 2 + [attentions[:9]] * 2
    assert said() == [
        f"step {2 * i}: operation {i} of 3, unfreeze_layer attn.{12 - i}: val/loss {loss} < {limit}: "
        "thawed 1,024 parameters"
        for i, loss, limit in ((1, 2.7, 2.8), (2, 2.5, 2.6), (3, 2.3, 2.4))
    ]


def test_component_wise_training(said: Any) -> None:
    """All MLPs frozen at once, and all set free by one loss."""
    _, frozen = train(COMPONENTS, [2.5, 1.9, 1.9])
    mlps = [f"mlp.{i}" for i in range(12)]

    assert frozen == [mlps] * 4 + [[]] * 2
    assert said() == [
        *(
            f"step 0: operation {i + 1} of 24, freeze_layer mlp.{i}: at once: froze 2,048 parameters"
            for i in range(12)
        ),
        *(
            f"step 4: operation {i + 13} of 24, unfreeze_layer mlp.{i}: val/loss 1.9 < 2: "
            "thawed 2,048 parameters"
            for i in range(12)
        ),
    ]


@pytest.mark.parametrize(("name", "value"), [("set_embedding_lora_rank", 0), ("merge_lora_weights", "wte")])
def test_a_merge_into_a_tied_embedding_is_refused_before_training(name: str, value: Any) -> None:
    """It would change the head too."""
    operations = [
        {"name": "set_embedding_lora_rank", "value": 2, "max_wait_iters": 1},
        {"name": name, "value": value, "max_wait_iters": 1},
    ]
    with pytest.raises(
        RuntimeError, match=rf"operations\[1\] \({name} {value}\): The weight .* tied to another"
    ):
        train(operations, [1.0])


def test_the_legacy_names_have_their_meaning() -> None:
    """One rank for every attention, and one for the embeddings; infinity as JSON spells it."""
    operations = [
        {"name": "set_attn_lora_rank", "value": 2, "trigger_loss": math.inf},
        {"name": "set_embedding_lora_rank", "value": 3, "max_wait_iters": 1},
        {"name": "set_attn_lora_rank", "value": 0, "max_wait_iters": 1},
    ]
    module, _ = train(operations, [1.0, 1.0])
    network = module.network

    assert {block.attn.c_attn.r["default"] for block in network.transformer.h} == {0}
    assert network.transformer.wte.r["default"] == 3
    assert all(block.attn.c_attn.base_layer.weight.requires_grad for block in network.transformer.h)
