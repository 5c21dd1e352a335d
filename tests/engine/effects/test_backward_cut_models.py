"""The end of the backward pass in models of other kinds: own checkpointing, encoder and decoder, our GPT."""

import logging
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lighter_freezers import GPT
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.backward_cut import GradientBoundary
from lighter_freezers.planning.costs.step_cost import measure_step
from tests.engine.effects.test_backward_cut import (
    HOLDER,
    B,
    C,
    N,
    T,
    V,
    X,
    checkpoint_blocks,
    forward_of_block,
    gpt2,
    hold,
    limit,
    prefix,
    step,
)


class OwnCheckpointing(nn.Module):
    """Blocks that a module of its own checkpoints from outside, all of them in one segment or each."""

    def __init__(self, is_reentrant: bool, is_one: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, C)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(C, C), nn.GELU()) for _ in range(N))
        self.head = nn.Linear(C, V, bias=False)
        self.head.weight = self.table.weight
        self.is_reentrant, self.is_one = is_reentrant, is_one

    def through(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.table(input_ids)
        for part in [self.through] if self.is_one else self.blocks:
            hidden = checkpoint(part, hidden, use_reentrant=self.is_reentrant)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), X.flatten())


def make_inputs_require_grad(module: nn.Module, arguments: Any, output: torch.Tensor) -> None:
    """The hook of PEFT, for a model that has no method for it."""
    output.requires_grad_(True)


@pytest.mark.parametrize("is_marked", [False, True])
@pytest.mark.parametrize("is_one", [False, True])
@pytest.mark.parametrize("is_reentrant", [False, True])
def test_checkpointing_from_outside_computes_the_same_again(
    is_reentrant: bool, is_one: bool, is_marked: bool
) -> None:
    """Cut in both passes; a re-entrant segment with frozen and other blocks is left as it is."""
    model, plain = OwnCheckpointing(is_reentrant, is_one), OwnCheckpointing(is_reentrant, is_one)
    for each in (model, plain):
        if is_marked:
            each.table.register_forward_hook(make_inputs_require_grad)
        hold(each, "blocks.0", "blocks.1")
    GradientBoundary(model).follow()
    is_left = is_reentrant and is_one
    for _ in range(2):  # re-entrant segments are known from the second step on
        model.zero_grad()
        plain.zero_grad()
        costs = [measure_step(lambda each=each: each(X).backward(), each).flops for each in (model, plain)]
        for one, other in zip(model.blocks.parameters(), plain.blocks.parameters(), strict=True):
            assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)
        assert torch.equal(model.table.weight.grad, plain.table.weight.grad) == is_left

    assert (costs[0] < costs[1]) != is_left


def reentrant_gpt2(how: str) -> nn.Module:
    """A GPT-2 whose blocks are re-entrant segments: by transformers, by hand, by torch's wrapper."""
    model: Any = gpt2()
    if how == "transformers":
        checkpoint_blocks(model, is_reentrant=True)
    for number, block in enumerate(model.transformer.h):
        if how == "by hand":
            block.forward = partial(by_hand, block.forward)
        if how == "wrapper":
            model.transformer.h[number] = checkpoint_wrapper(block, checkpoint_impl=CheckpointImpl.REENTRANT)
    model.enable_input_require_grads()
    return model


def by_hand(forward: Any, hidden: torch.Tensor, *others: Any, **named: Any) -> Any:
    return checkpoint(partial(forward, **named), hidden, *others, use_reentrant=True)


@pytest.mark.parametrize("num_frozen", [2, N])
@pytest.mark.parametrize("how", ["transformers", "by hand", "wrapper"])
def test_a_frozen_prefix_of_reentrant_segments_costs_its_forward_pass(how: str, num_frozen: int) -> None:
    """From the third step on at the latest; what trains learns as without the cut."""
    model, plain = reentrant_gpt2(how), reentrant_gpt2(how)
    for each in (model, plain):
        hold(each, "wpe", *prefix(num_frozen))
    GradientBoundary(model).follow()
    for _ in range(3):
        for each in (model, plain):
            each.zero_grad()
        costs = [measure_step(step(each), each).flops for each in (model, plain)]
        for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert one.grad is other.grad is None or "wte" in name or torch.equal(one.grad, other.grad)

    again = (N - num_frozen) * forward_of_block()
    assert costs[0] == limit(num_frozen) + again < costs[1]


def test_encoder_and_decoder_are_told_apart() -> None:
    """A T5 with frozen stacks but for the last decoder block and the tied head: as much as its limit."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": V, "d_model": C, "d_kv": 8, "d_ff": C, "num_layers": 2, "num_heads": 2}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(
        T5Config(**sizes, **tokens, dropout_rate=0.0, tie_word_embeddings=True)
    )
    hold(model, "encoder.block", "encoder.final", "decoder.block.0")

    def run() -> None:
        model(input_ids=X, labels=X, use_cache=False).loss.backward()

    without = measure_step(run, model).flops
    ledger.hold([model.shared.weight], HOLDER)
    ideal = measure_step(run, model).flops + 2 * B * T * C * V  # the head's gradient
    ledger.release([model.shared.weight], HOLDER)
    GradientBoundary(model).follow()

    assert measure_step(run, model).flops == ideal < without
    assert model.shared.weight.grad is not None


@pytest.mark.parametrize("num_frozen", [1, 3])
def test_our_gpt_with_its_tied_head(num_frozen: int) -> None:
    """As cheap as with an embedding that is frozen, but for the head's own gradient."""
    model = GPT({"vocab_size": V, "block_size": T, "n_layer": N, "n_embd": C, "n_head": 2})
    hold(model, *prefix(num_frozen), "wpe")

    def run() -> None:
        model(X, X)[1].backward()

    ledger.hold([model.transformer.wte.weight], HOLDER)
    ideal = measure_step(run, model).flops + 2 * B * T * C * V
    ledger.release([model.transformer.wte.weight], HOLDER)
    GradientBoundary(model).follow()

    assert measure_step(run, model).flops == ideal


@pytest.mark.parametrize("frozen", [("layer1",), ("layer1", "layer2"), ("layer1", "layer2", "layer3.0")])
def test_the_lost_gain_of_a_convnet_is_counted(
    frozen: tuple[str, ...], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution uses its weights once for each position of its output."""
    from torchvision.models import resnet18

    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    model, ideal = resnet18(num_classes=2), resnet18(num_classes=2)
    images = torch.randn(1, 3, 32, 32)
    for each, prefixes in ((model, frozen), (ideal, (*frozen, "conv1", "bn1"))):
        held = [p for name, p in each.eval().named_parameters() if name.startswith(prefixes)]
        ledger.hold(held, HOLDER)
    boundary = GradientBoundary(model)
    boundary.follow()
    costs = [
        measure_step(lambda each=each: each(images).sum().backward(), each).flops for each in (model, ideal)
    ]

    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    share = float(warning.partition(" %")[0].rpartition(" ")[2])
    assert share == pytest.approx(100 * (1 - costs[1] / costs[0]), abs=2)
    assert f"the frozen {', '.join(frozen)} because" in warning
    assert not any(module._forward_hooks for module in model.modules())
