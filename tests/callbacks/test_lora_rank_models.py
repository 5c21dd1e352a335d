"""LoraRankScheduler on other models: of transformers, built late, compiled."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import LoraRankScheduler, apply_lora, save_adapter
from tests.callbacks.test_lora_rank_scheduler import changes, fit
from tests.lab import adamw, batches, regression, trainer
from tests.lora.lora_lab import mixed

LONE = "pytorch_lightning"


class Reader(torch.nn.Module):
    """A model of transformers that reads numbers as tokens, with LoRA from `apply_lora` or from PEFT."""

    def __init__(self, is_peft_model: bool) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel

        size = {"vocab_size": 16, "n_positions": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}
        inner: Any = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))
        config = {"r": 2, "target_modules": ["c_attn", "c_fc", "wte"], "fan_in_fan_out": True}
        self.inner = (
            get_peft_model(inner, LoraConfig(**config)) if is_peft_model else apply_lora(inner, config)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner((x * 4 + 8).long().clamp(0, 15)).logits.mean((1, 2))[:, None]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("is_peft_model", [False, True])
def test_a_model_of_transformers_follows_the_same_names(is_peft_model: bool, tmp_path: Path) -> None:
    """Short names, checkpoints and exports."""
    schedule = [
        {"step": 1, "rank_pattern": {"attn.*": 4, "wte": 3}},
        {"step": 5, "rank_pattern": {"mlp.1": 0}},
    ]
    module = regression(LONE, network=lambda: Reader(is_peft_model), optimizer=adamw)
    seen, _, run = fit(schedule, module=module)
    assert seen[0] == {"wte": 2, "attn.0": 2, "mlp.0": 2, "attn.1": 2, "mlp.1": 2}
    assert seen[4] == {"wte": 3, "attn.0": 4, "mlp.0": 2, "attn.1": 4, "mlp.1": 2}
    assert seen[7] == {"wte": 3, "attn.0": 4, "mlp.0": 2, "attn.1": 4, "mlp.1": 0}

    run.save_checkpoint(tmp_path / "end.ckpt")
    twin = regression(LONE, network=lambda: Reader(is_peft_model), optimizer=adamw)
    (metrics,) = trainer(LONE, callbacks=[LoraRankScheduler(schedule)]).validate(
        twin, batches(), ckpt_path=tmp_path / "end.ckpt", verbose=False
    )
    assert metrics["val/loss"] == run.callback_metrics["val/loss"]
    save_adapter(twin, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def late(namespace: str = LONE) -> Any:
    """A module that builds its network in `configure_model`."""
    module = regression(namespace, network=torch.nn.Identity, optimizer=adamw)

    def configure_model(self: Any) -> None:
        if isinstance(self.network, torch.nn.Identity):
            torch.manual_seed(0)
            self.network = mixed()

    type(module).configure_model = configure_model
    return module


def test_a_network_that_is_built_late_follows_too(tmp_path: Path) -> None:
    """After `setup`, and after the checkpoint's state was handed out: what is frozen is still known."""
    schedule = [
        {"step": 1, "rank_pattern": {"wte": 5, "proj": 0}},
        {"step": 3, "rank_pattern": {"h.0.fc": 4}},
        {"step": 6, "rank_pattern": {"proj": 2}},
    ]
    seen, module, run = fit(schedule, module=late(), on_zero="freeze")
    assert changes(seen) == {1: {"wte": 5}, 3: {"h.0.fc": 4}, 6: {"proj": 2}}

    half = trainer(LONE, callbacks=[LoraRankScheduler(schedule, on_zero="freeze")], max_epochs=1)
    half.fit(late(), batches(), batches())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = late()
    rest = trainer(LONE, callbacks=[LoraRankScheduler(schedule, on_zero="freeze")], max_epochs=2)
    rest.fit(resumed, batches(), batches(), ckpt_path=tmp_path / "half.ckpt")

    weights = module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in resumed.state_dict().items())


def test_a_compiled_model_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch would keep code for every rank and give up after eight."""
    resets: list[int] = []
    import torch._dynamo

    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(1))
    module = regression(LONE, network=mixed, optimizer=adamw)
    module.network.h[0].compile(backend="eager")
    fit([{"step": 1, "rank_pattern": {"fc": 6}}, {"step": 2, "rank_pattern": {"fc": 6}}], module=module)

    assert resets == [1]
