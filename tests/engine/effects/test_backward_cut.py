"""Where the backward pass ends: operations against arithmetic, gradients against those without a boundary."""

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.backward_cut import GradientBoundary
from lighter_freezers.planning.costs.step_cost import measure_step

V, B, T, C, N = 24, 2, 16, 32, 4  # vocabulary, batch, time, channels, blocks
X = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(0))
HOLDER = "test"
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # asked by PEFT


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logger = logging.getLogger("lighter_freezers")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, "lighter_freezers"):
        yield


def gpt2(tie: bool = True, **options: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": V, "n_positions": T, "n_layer": N, "n_embd": C, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    dropouts = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = GPT2Config(
        **sizes, **tokens, **dropouts, tie_word_embeddings=tie, attn_implementation="eager", **options
    )
    return GPT2LMHeadModel(config).train()


def loss_of(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=X, labels=X, use_cache=False).loss
    return loss


def step(model: nn.Module) -> Callable[[], None]:
    return lambda: loss_of(model).backward()


def hold(model: nn.Module, *parts: str) -> list[nn.Parameter]:
    chosen = [p for name, p in model.named_parameters() if any(part in name for part in parts)]
    ledger.hold(chosen, HOLDER)
    return chosen


def prefix(num_blocks: int) -> list[str]:
    return [f".h.{index}." for index in range(num_blocks)]


def forward_of_block() -> int:
    """Four weight matrices of 12 C C elements in all, and two products of attention."""
    return 2 * B * T * 12 * C * C + 2 * 2 * B * T * T * C


def limit(num_frozen: int, is_checkpointed: bool = False) -> int:
    """One forward of what is frozen, three times the forward of what trains, the head included.

    Checkpointing computes the forward of what trains again, but for its last product with 4 C C.
    """
    again = forward_of_block() - 2 * B * T * 4 * C * C if is_checkpointed else 0
    trained = (N - num_frozen) * (3 * forward_of_block() + again)
    return num_frozen * forward_of_block() + trained + 3 * 2 * B * T * C * V


def enable(model: nn.Module) -> None:
    model.enable_input_require_grads()


def checkpoint_blocks(model: Any, *, is_reentrant: bool = False) -> None:
    """By the name that transformers 4 or 5 has for it."""
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(model, name) for name in names if hasattr(model, name))({"use_reentrant": is_reentrant})


def checkpointed(model: nn.Module) -> None:
    checkpoint_blocks(model)
    model.enable_input_require_grads()


MODES: dict[str, tuple[bool, list[str], Callable[[nn.Module], None]]] = {
    "plain": (False, ["wte", "wpe"], lambda model: None),
    "tied head": (True, ["wpe"], lambda model: None),
    "input_require_grads": (False, ["wte", "wpe"], enable),
    "tied head and input_require_grads": (True, ["wpe"], enable),
    "checkpointing": (False, ["wte", "wpe"], checkpointed),
    "tied head and checkpointing": (True, ["wpe"], checkpointed),
}


@pytest.mark.parametrize("num_frozen", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_a_frozen_prefix_costs_its_forward_pass(mode: str, num_frozen: int) -> None:
    """The limit to the last operation, in every mode; without the boundary it is more in all but one."""
    tie, also, prepare = MODES[mode]
    model = gpt2(tie)
    prepare(model)
    hold(model, *prefix(num_frozen), *also)
    if tie:
        model.transformer.wte.weight.requires_grad_(True)
    without = measure_step(step(model), model).flops
    boundary = GradientBoundary(model)
    boundary.follow()
    expected = limit(num_frozen, "checkpointing" in mode)

    assert measure_step(step(model), model).flops == expected
    assert (without > 1.05 * expected) == (mode != "plain")
    boundary.remove()
    assert measure_step(step(model), model).flops == without


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_lora_above_a_frozen_prefix(is_checkpointed: bool) -> None:
    """Adapters in the upper half only: bit-equal gradients, and no backward pass below."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=2, target_modules=["c_attn"], layers_to_transform=[2, 3], layers_pattern="h", fan_in_fan_out=True
    )
    model = get_peft_model(gpt2(), config)
    model.enable_input_require_grads()
    if is_checkpointed:
        checkpoint_blocks(model.base_model.model)
    without = measure_step(step(model), model)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    boundary = GradientBoundary(model)
    boundary.follow()
    cut = measure_step(step(model), model)

    num_saved = 2 * (2 if is_checkpointed else 1)  # two blocks, whose forward is not computed again either
    assert without.flops - cut.flops > 0.8 * num_saved * forward_of_block()
    found = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert found.keys() == gradients.keys() != set()
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in found.items())


def test_a_tied_embedding_learns_through_the_head_alone(caplog: pytest.LogCaptureFixture) -> None:
    """As if the output of the embeddings were detached by hand; one line states it, once."""
    model, by_hand = gpt2(), gpt2()
    for each in (model, by_hand):
        hold(each, *prefix(2), "wpe")
    by_hand.transformer.drop.register_forward_hook(lambda _, arguments, output: output.detach())
    boundary = GradientBoundary(model)
    boundary.follow()
    for _ in range(2):
        step(model)()
        step(by_hand)()

    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)
    said = [record for record in caplog.records if "learns through the head" in record.message]
    assert len(said) == 1
    assert "the frozen h.0-1: transformer.wte.weight" in said[0].message


def test_the_user_may_refuse() -> None:
    """Then the embedding learns through the blocks as well."""
    model, plain = gpt2(), gpt2()
    chosen = [hold(each, *prefix(2), "wpe") for each in (model, plain)]
    boundary = GradientBoundary(model)
    boundary.follow(refusing=chosen[0])
    step(model)()
    step(plain)()

    assert torch.equal(model.transformer.wte.weight.grad, plain.transformer.wte.weight.grad)


def test_a_prefix_that_the_user_froze_leaves_a_tied_embedding_alone() -> None:
    """It was not requested: only a hold cuts."""
    model, plain = gpt2(), gpt2()
    for each in (model, plain):
        for name, parameter in each.named_parameters():
            parameter.requires_grad_(".h.0." not in name and "wpe" not in name)
    GradientBoundary(model).follow()
    step(model)()
    step(plain)()

    assert torch.equal(model.transformer.wte.weight.grad, plain.transformer.wte.weight.grad)


@pytest.mark.parametrize("mode", ["wpe", "wte", "wpe, checkpointed"])
def test_a_choice_that_costs_the_gain_is_named(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, with what stands in the way and the share of operations, near what is measured."""
    tie = mode != "wte"
    model, ideal = gpt2(tie), gpt2(tie)
    also = ["wpe"] if mode == "wte" else []
    for each in (model, ideal):
        if "checkpoint" in mode:
            checkpoint_blocks(each)
    hold(model, *prefix(2), *also)
    hold(ideal, *prefix(2), "wpe", *(["wte"] if mode == "wte" else []))
    boundaries = [GradientBoundary(each) for each in (model, ideal)]
    for boundary in boundaries:
        boundary.follow()
    with torch.no_grad():
        loss_of(model.eval())  # nothing is lost where there is no backward pass
    model.train()
    assert not [record for record in caplog.records if record.name.startswith("lighter_freezers")]
    costs = [measure_step(step(each), each).flops for each in (model, model, ideal)]

    ours = [record for record in caplog.records if record.name.startswith("lighter_freezers")]
    (warning,) = [record for record in ours if record.levelname == "WARNING"]
    share = float(warning.message.partition(" %")[0].rpartition(" ")[2])
    assert share == pytest.approx(100 * (1 - costs[2] / costs[0]), abs=3)
    assert {"wte": "wte below trains"}.get(mode, "Freeze wpe too") in warning.message


def test_the_gradient_of_an_input_is_nobody_elses_business() -> None:
    """An input that requires a gradient gets it."""
    model = gpt2()
    model.requires_grad_(False)
    model.lm_head.weight = nn.Parameter(torch.randn(V, C))
    inputs = [torch.ones(B, T, C, requires_grad=True) for _ in range(2)]
    for index, hidden in enumerate(inputs):
        if index:
            GradientBoundary(model).follow()
        model(inputs_embeds=hidden, use_cache=False).logits.square().sum().backward()

    assert torch.equal(inputs[0].grad, inputs[1].grad)


def test_a_soft_prompt_still_learns() -> None:
    """PEFT's prompt tuning: what trains is in front of all blocks."""
    from peft import PromptTuningConfig, TaskType, get_peft_model

    gradients = []
    for has_boundary in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(gpt2(), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3))
        if has_boundary:
            GradientBoundary(model).follow()
        model(input_ids=X[:, :8], labels=X[:, :8], use_cache=False).loss.backward()
        gradients += [p.grad for p in model.parameters() if p.requires_grad]

    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].any()


def test_it_comes_and_goes_with_the_flags() -> None:
    """No hook before and after; a copy of the model made in between works and is not cut wrongly."""
    model = gpt2()
    boundary = GradientBoundary(model)
    boundary.follow()
    first = model.transformer.h[0]
    assert not first._forward_pre_hooks
    chosen = hold(model, *prefix(1), "wpe")
    boundary.follow()
    assert len(first._forward_pre_hooks) == 1
    boundary.follow()
    assert len(first._forward_pre_hooks) == 1
    step(copy.deepcopy(model))()
    ledger.release(chosen, HOLDER)
    boundary.follow()
    assert not first._forward_pre_hooks
    step(model)()
    assert all(parameter.grad is not None for parameter in model.parameters())
