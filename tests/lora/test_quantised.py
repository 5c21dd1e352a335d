"""Bases that bitsandbytes quantised, on the CPU: rank changes, merges, export. Skipped where it is absent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from lighter_freezers import apply_lora, save_adapter, set_layer_lora_rank

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt", "ignore::FutureWarning")


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
