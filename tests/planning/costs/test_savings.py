"""The estimate against what is really there: gradients, moments and live activations of real models."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import GPT, get_memory_savings_estimate
from tests.planning.costs.live_bytes import LiveBytes

GIB = 2**30


def gpt() -> nn.Module:
    return GPT({"vocab_size": 40, "block_size": 16, "n_layer": 4, "n_embd": 32, "n_head": 2})


def hf_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 40, "n_positions": 16, "n_layer": 4, "n_embd": 32, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **tokens, use_cache=False))


def batch_of(model: nn.Module) -> dict[str, torch.Tensor]:
    x = torch.randint(0, 40, (3, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": x, "targets" if isinstance(model, GPT) else "labels": x}


def freeze_half(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".h.2" in name or ".h.3" in name or "ln_f" in name)


def live_bytes(model: nn.Module, batch: Any) -> int:
    """What is alive after the forward pass besides what it returns, and besides what is not kept."""
    with LiveBytes() as live:
        result = model(**batch)
        loss = result[1] if isinstance(result, tuple) else result.loss
        del result
        return live.current - loss.element_size()


@pytest.mark.parametrize("build", [gpt, hf_gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_what_a_step_needs(build: Any, dtype: torch.dtype) -> None:
    """Gradients and AdamW's state to the byte, activations within five percent, now and saved."""
    model = build().to(dtype)
    batch, needed = batch_of(model), {}
    for state in ("all", "half"):
        if state == "half":
            freeze_half(model)
            estimate = get_memory_savings_estimate(model, torch.optim.AdamW, batch)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        activations = live_bytes(model, batch)
        result = model(**batch)
        (result[1] if isinstance(result, tuple) else result.loss).backward()
        optimizer.step()
        state_tensors = [value for each in optimizer.state.values() for value in each.values()]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        needed[state] = [
            *(sum(t.numel() * t.element_size() for t in each) for each in (gradients, state_tensors)),
            activations,
        ]
        optimizer.zero_grad()
    saved = [one - other for one, other in zip(needed["all"], needed["half"], strict=True)]

    assert [estimate["gradient_bytes"], estimate["optimizer_bytes"]] == needed["half"][:2]
    assert [estimate["gradient_saved_bytes"], estimate["optimizer_saved_bytes"]] == saved[:2]
    assert estimate["activation_bytes"] == pytest.approx(needed["half"][2], rel=0.05)
    assert estimate["activation_saved_bytes"] == pytest.approx(saved[2], rel=0.05)
    assert estimate["total_saved_gb"] == pytest.approx(
        (saved[0] + saved[1] + estimate["activation_saved_bytes"]) / GIB
    )


def test_the_keys_of_the_document() -> None:
    """Bytes by hand: a tied weight counts once, and one that cannot train never does."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    net[1].weight = net[0].weight
    net.table = nn.Parameter(torch.zeros(8, dtype=torch.int8), requires_grad=False)
    net[0].requires_grad_(False)
    estimate = get_memory_savings_estimate(net)

    assert estimate["frozen_params"] == 16 + 8
    assert estimate["trainable_params"] == 10
    assert estimate["frozen_percentage"] == pytest.approx(100 * 24 / 34)
    assert estimate["gradient_saved_gb"] == 4 * 16 / GIB
    assert estimate["optimizer_saved_gb"] == (8 * 16 + 4) / GIB
    assert estimate["total_saved_gb"] == estimate["gradient_saved_gb"] + estimate["optimizer_saved_gb"]
    assert not any("activation" in key for key in estimate)


def test_the_optimizer_decides() -> None:
    """Plain SGD remembers nothing, an instance counts as it is."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].requires_grad_(False)

    assert get_memory_savings_estimate(net, torch.optim.SGD)["optimizer_saved_bytes"] == 0
    momentum = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    assert get_memory_savings_estimate(net, momentum)["optimizer_saved_bytes"] == 4 * 20


@pytest.mark.parametrize("call", ["tensor", "tuple", "mapping"])
def test_the_model_is_left_alone(call: str) -> None:
    """Flags, gradients, running statistics and random numbers; any way to call it gives the same figure."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(6, 4)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    batch = {"tensor": x, "tuple": (x,), "mapping": {"input": x}}[call]
    estimate = get_memory_savings_estimate(net, batch=batch)

    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [parameter.requires_grad for parameter in net.parameters()] == [False] * 2 + [True] * 4
    assert all(parameter.grad is None for parameter in net.parameters())
    assert estimate["activation_bytes"] > 0
    # the input of the frozen layer is the batch itself, so that it trains keeps nothing more
    assert estimate["activation_saved_bytes"] == 0
