"""`set_layer_lora_rank` with rank 0 on a tied model: what the operation and the method of a GPT can write."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import GPT, LayerOperations, apply_lora
from lighter_freezers.lora.sites import find_lora_sites
from tests.lab import batches, regression, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

SIZES = {"vocab_size": 64, "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}


def tied() -> GPT:
    return apply_lora(GPT(SIZES), {"r": 4, "target_modules": ["wte", "c_attn"], "init_lora_weights": False})


def fit(model: GPT, value: Any, name: str = "set_layer_lora_rank") -> None:
    operations = LayerOperations([{"name": name, "value": value, "max_wait_iters": 1}])
    module = regression("pytorch_lightning", lambda: Scores(model))
    trainer("pytorch_lightning", max_steps=3, callbacks=[operations]).fit(module, batches())


class Scores(nn.Module):
    """A GPT that reads the numbers of `tests.lab` as tokens."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gpt((x * 8 + 32).long().clamp(0, 63))[0].mean((1, 2))[:, None]


def test_the_operation_says_what_rank_zero_means() -> None:
    """The head keeps the weight it shares."""
    model = tied()
    weight = model.lm_head.weight.detach().clone()
    fit(model, ["wte", 0, "drop"])

    assert [site.factors.rank for site in find_lora_sites(model).values()] == [0, 4]
    assert torch.equal(model.lm_head.weight, weight)


@pytest.mark.parametrize(
    ("name", "value"), [("set_layer_lora_rank", ["wte", 0]), ("set_embedding_lora_rank", 0)]
)
def test_the_message_names_what_its_reader_can_write(name: str, value: Any) -> None:
    with pytest.raises(
        RuntimeError, match=r"tied.*Use \{name: set_layer_lora_rank, value: \[wte, 0, drop\]\}"
    ):
        fit(tied(), value, name)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (["wte", 4, "drop"], ValueError, "the rank is 4. Remove it"),
        (["wte", 0, "dorp"], ValueError, r"\[2\] must be one of merge, drop. Got 'dorp'"),
        (["wte", 0, "drop", 1], TypeError, r"must be \[layer, rank\].*'drop'"),
    ],
)
def test_a_wrong_value_is_an_error(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LayerOperations([{"name": "set_layer_lora_rank", "value": value, "max_wait_iters": 1}])


def test_the_method_of_a_gpt_takes_it_too() -> None:
    model = tied()
    with pytest.raises(RuntimeError, match="tied.*on_zero='drop'"):
        model.set_layer_lora_rank("wte", 0)
    model.set_layer_lora_rank("wte", 0, on_zero="drop")
    assert [site.factors.rank for site in find_lora_sites(model).values()] == [0, 4]
