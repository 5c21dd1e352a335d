"""Bases that bitsandbytes quantised, on the CPU: rank changes, merges, export. Skipped where it is absent."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lighter_freezers import LoraRankScheduler, apply_lora, save_adapter, set_layer_lora_rank
from tests.callbacks.test_freezer_resume import same
from tests.distributed.run_ranks import run_ranks
from tests.lab import ResumableLoader, adamw, regression, trainer

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytestmark = pytest.mark.filterwarnings(
    "ignore:MatMul8bitLt",
    "ignore::FutureWarning",
    "ignore:The dirpath has",
    "ignore:Checkpoint directory",
    "ignore:You defined a `validation_step`",
)


class Net(nn.Module):
    """A quantised layer below a plain one."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        plain = nn.Linear(64, 64)
        quantised: Any = bnb.nn.Linear4bit(64, 64, quant_type="nf4")
        if bits == 8:
            quantised = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
        quantised.load_state_dict(plain.state_dict())
        self.q, self.k = quantised.to("cpu"), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.k(self.q(x))


@pytest.mark.parametrize("bits", [4, 8])
def test_ranks_change_on_a_quantised_base(bits: int, tmp_path: Path) -> None:
    """Growth keeps the function, a merge is refused, rank 0 is the base, and stock PEFT loads the rest."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    config = {"r": 4, "target_modules": ["q", "k"], "init_lora_weights": False}
    model = apply_lora(Net(bits), config).eval()
    with torch.no_grad():
        before = model(x)
        weight = model.q.base_layer.weight.clone()  # a first forward packs it for the CPU
        set_layer_lora_rank(model, "q", 9)
        assert torch.allclose(model(x), before, atol=1e-5)
        set_layer_lora_rank(model, "q", 2)
        assert not torch.allclose(model(x), before, atol=1e-3)
        with pytest.raises(RuntimeError, match="quantised.*on_zero='drop'"):
            set_layer_lora_rank(model, "q", 0)
        save_adapter(model, tmp_path / "two")
        loaded = PeftModel.from_pretrained(Net(bits), tmp_path / "two").eval()
        assert torch.allclose(loaded(x), model(x), atol=1e-6)
        set_layer_lora_rank(model, "q", 0, on_zero="drop")
        assert torch.equal(model.q(x), model.q.base_layer(x))
        save_adapter(model, tmp_path / "none")
        loaded = PeftModel.from_pretrained(Net(bits), tmp_path / "none").eval()
        assert torch.allclose(loaded(x), model(x), atol=1e-6)
    assert torch.equal(model.q.base_layer.weight, weight)


SCHEDULE = [{"step": 2, "rank_pattern": {"q": 7}}, {"step": 5, "rank_pattern": {"q": 2, "k": 6}}]
NUM_STEPS = 8


def quantised_lora(bits: int) -> nn.Module:
    """The factors of which train alone."""
    torch.manual_seed(0)
    model = apply_lora(Net(bits), {"r": 4, "target_modules": ["q", "k"], "init_lora_weights": False})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def loader(x: torch.Tensor) -> ResumableLoader:
    """Batches of two rows, each its own target."""
    resumable = ResumableLoader.__new__(ResumableLoader)
    DataLoader.__init__(resumable, TensorDataset(x, x), batch_size=2)
    resumable._num_given = 0
    return resumable


def fitted(bits: int, folder: Path, cut: Path | None = None) -> dict[str, Any]:
    """Train with changing ranks, alone or as one of two ranks; weights, and moments of the factors."""
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.strategies import DDPStrategy

    torch.set_num_threads(1)
    rank, num_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    x = torch.randn(NUM_STEPS * 4, 64, generator=torch.Generator().manual_seed(2))
    parts = [x[first + rank * 2 : first + rank * 2 + 2] for first in range(0, len(x), num_ranks * 2)]
    module = regression("pytorch_lightning", lambda: quantised_lora(bits), adamw)
    module.strict_loading = False  # Linear4bit does not load what it saves beside its weight
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    accumulate: dict[str, Any] = {"accumulate_grad_batches": 2}
    if num_ranks > 1:
        accumulate = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": num_ranks}
    run = trainer(
        "pytorch_lightning",
        callbacks=[LoraRankScheduler(SCHEDULE), saver],
        enable_checkpointing=True,
        default_root_dir=folder,
        **accumulate,
    )
    run.fit(module, loader(torch.cat(parts)), ckpt_path=cut)
    return {
        "weights": {name: each.clone() for name, each in module.state_dict().items() if "lora_" in name},
        "optimizer": run.optimizers[0].state_dict()["state"],
    }


@pytest.mark.parametrize("bits", [4, 8])
def test_a_resumed_run_equals_the_whole_one(bits: int, tmp_path: Path) -> None:
    """From before, between and after the changes of rank, bit for bit."""
    whole = fitted(bits, tmp_path / "whole")

    for step in (1, 2, 3, 6):
        resumed = fitted(bits, tmp_path / str(step), tmp_path / "whole" / f"step={step}.ckpt")
        assert same(resumed, whole)


@pytest.mark.wide
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """With a base of four bits."""
    first, second = run_ranks(fitted, tmp_path, 2, 4, tmp_path)
    alone = fitted(4, tmp_path / "alone")

    assert same(first, second)
    assert same(first, alone)
