"""Blocks that are compiled one by one: few graphs under any schedule, and words where there would be many."""

import copy
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from pytorch_lightning import LightningModule
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from lighter_freezers import (
    GPT,
    Freezer,
    Lisa,
    compile_blocks,
    freeze_by_name,
    freeze_embeddings,
    freeze_first_n_layers,
    unfreeze_by_name,
)
from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.backward_cut import GradientBoundary
from lighter_freezers.engine.effects.compiled_graphs import CompiledGraphs, is_compiled
from tests.architectures import ARCHITECTURES, BERT, LLAMA, T5, VIT
from tests.engine.effects.test_gradient_cut import LONE, language_model, tokens
from tests.lab import first_now, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # dynamo looks at all inputs
# torch 2.6 speaks of a cache
LIMIT, FAIL = (
    ("recompile_limit", "fail_on_recompile_limit_hit")
    if hasattr(torch._dynamo.config, "recompile_limit")
    else ("cache_size_limit", "fail_on_cache_limit_hit")
)
V, T, NUM_BLOCKS = 24, 16, 11
IDS = torch.randint(3, 32, (2, 16), generator=torch.Generator().manual_seed(0))
TOKENS_OF_ALL = {"input_ids": IDS, "labels": IDS}
IMAGES = {"pixel_values": torch.ones(2, 3, 8, 8)}


def deep(name: str, num_layers: int) -> nn.Module:
    """A model of transformers with so many layers."""
    depth, quiet = {"num_hidden_layers": num_layers}, {"hidden_dropout_prob": 0.0}
    quiet["attention_probs_dropout_prob"] = 0.0
    t5 = {
        **T5,
        "num_layers": num_layers,
        "num_decoder_layers": num_layers,
        "num_heads": 2,
        "dropout_rate": 0.0,
    }
    build = {
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **depth})),
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**{**BERT, **depth, **quiet})),
        "vit": lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**{**VIT, **depth, **quiet})
        ),
        "t5": lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(**t5, decoder_start_token_id=0)
        ),
    }
    return build[name]()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    ours = ("lighter_freezers", "WARNING")  # dynamo has words of its own
    return lambda: [each.message for each in caplog.records if (each.name, each.levelname) == ours]


def gpt(num_blocks: int = NUM_BLOCKS) -> GPT:
    torch.manual_seed(0)
    return GPT({"vocab_size": V, "block_size": T, "n_layer": num_blocks, "n_embd": 16, "n_head": 2})


def top_down(num_blocks: int = NUM_BLOCKS) -> list[Freezer]:
    """One block more at each step, from the last to the first, then the embeddings: a phase for each."""
    blocks = [
        Freezer(name_starts_with=f"transformer.h.{index}.", until_step=num_blocks - index)
        for index in range(num_blocks)
    ]
    return [*blocks, Freezer(name_starts_with="transformer.wpe", until_step=num_blocks)]


def fit(network: nn.Module, callbacks: list[Any], num_steps: int) -> nn.Module:
    module = language_model(LONE)
    module.network = network
    trainer(LONE, callbacks=callbacks, max_steps=num_steps).fit(module, tokens(num_steps))
    return network


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_twelve_phases_make_at_most_four_graphs(backend: str) -> None:
    """With the cut of a tied head, in a real Trainer, and never beyond what torch keeps."""
    counter = CompileCounterWithBackend(backend)
    compiled = compile_blocks(gpt(), backend=counter)
    with torch._dynamo.config.patch({FAIL: True}):
        fit(compiled, top_down(), NUM_BLOCKS + 1)

    assert 2 <= counter.frame_count <= 4


def test_it_trains_as_ever() -> None:
    """Bit-equal weights after a schedule, with torch's eager backend."""
    plain = fit(gpt(3), top_down(3), 5)
    compiled = fit(compile_blocks(gpt(3), backend="eager"), top_down(3), 5)

    for (name, one), (other_name, other) in zip(
        plain.named_parameters(), compiled.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other), name


def test_names_stay_and_every_block_is_compiled() -> None:
    """State dict, modules and class are those of the plain model; each stack of a T5 counts."""
    from transformers import T5Config, T5ForConditionalGeneration

    counter = CompileCounter()
    model = gpt(2)
    names = list(model.state_dict())
    assert compile_blocks(model, backend=counter) is model
    assert list(model.state_dict()) == names
    sizes = {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    t5 = compile_blocks(T5ForConditionalGeneration(T5Config(**sizes)), backend="eager")
    compiled = [name for name, module in t5.named_modules() if module._compiled_call_impl is not None]

    assert compiled == [f"{side}.block.{index}" for side in ("encoder", "decoder") for index in (0, 1)]


def test_a_whole_model_under_a_schedule_is_told_of_blocks(warnings: Any) -> None:
    """One warning, with the number of transitions and what becomes of it; none for a short schedule."""
    fit(torch.compile(gpt(4), backend=CompileCounter()), top_down(4)[-2:], 1)
    assert not any("compiled" in text for text in warnings())
    fit(torch.compile(gpt(), backend=CompileCounter()), top_down(), 1)
    (warning,) = [text for text in warnings() if "compiled" in text]

    assert "compiled as a whole, and its schedule has 11 transitions" in warning
    assert f"After 8 graphs (torch._dynamo.config.{LIMIT}) it runs uncompiled" in warning
    assert "lighter_freezers.compile_blocks" in warning


@pytest.mark.wide
def test_a_policy_recompiles_a_whole_model_and_shares_the_graphs_of_blocks(warnings: Any) -> None:
    """Draws are in no schedule: one warning at the fifth mask; compiled by blocks, four graphs do for all."""
    fit(torch.compile(gpt(6), backend=CompileCounter()), [Lisa(2, every_n_steps=1)], 7)
    (warning,) = [text for text in warnings() if "compiled" in text]
    assert "compiled as a whole, and has been frozen in 5 different ways by now" in warning
    assert "lighter_freezers.compile_blocks" in warning
    counter = CompileCounter()
    fit(compile_blocks(gpt(6), backend=counter), [Lisa(2, every_n_steps=1, rest="freeze")], 7)
    assert counter.frame_count <= 4
    assert len([text for text in warnings() if "compiled" in text]) == 1


@pytest.mark.parametrize("how", first_now(["blocks", "whole", "modules"]))
def test_the_backward_pass_ends_in_compiled_models_too(how: str) -> None:
    """However it is compiled, gradients are those of eager while a prefix is frozen, and after the thaw."""
    gradients: list[list[torch.Tensor]] = []
    x = torch.arange(T)[None]
    for compiles in (False, True):
        model = gpt(3)
        call: nn.Module = model
        if compiles and how == "whole":
            call = torch.compile(model, backend="aot_eager")
        elif compiles and how == "modules":
            model.transformer.h[0] = torch.compile(model.transformer.h[0], backend="aot_eager")
        elif compiles:
            compile_blocks(model, backend="aot_eager")
        call(x, x)[1].backward()
        chosen = [*model.transformer.h[0].parameters(), *model.transformer.wpe.parameters()]
        boundary = GradientBoundary(call, is_silent=True)
        for change in (ledger.hold, ledger.release):
            change(chosen, "test")
            boundary.follow()
            model.zero_grad()
            call(x, x)[1].backward()
            gradients.append([model.transformer.wte.weight.grad, model.lm_head.weight.grad])
    eager, compiled = gradients[:2], gradients[2:]

    for one, other in zip(eager, compiled, strict=True):
        assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(one, other, strict=True))
    assert not torch.allclose(eager[0][0], eager[1][0], atol=1e-4)


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("how", ["whole", "modules", "blocks", "in place"])
def test_what_was_frozen_when_it_was_compiled_trains_after_the_thaw(how: str, by_hand: bool) -> None:
    """Before 2.12 torch goes on with graphs that give no gradient to what was frozen."""
    model = gpt(3)
    network, first = model, model.transformer.h[0]
    if how == "blocks":
        compile_blocks(model, backend="aot_eager")
    elif how == "modules":
        model.transformer.h[0] = torch.compile(first, backend="aot_eager")
    elif how == "in place":
        first.compile(backend="aot_eager")
    else:
        network = torch.compile(model, backend="aot_eager")
    before = [parameter.detach().clone() for parameter in first.parameters()]
    if by_hand:
        x = torch.arange(T)[None]
        freeze_by_name(model, r"\.h\.")
        network(x, x)[1].backward()
        unfreeze_by_name(model, r"\.h\.")
        network(x, x)[1].backward()
        assert all(parameter.grad is not None for parameter in first.parameters())
        return
    fit(network, [Freezer(name_starts_with="transformer.h.", until_step=2)], 4)

    assert not any(torch.equal(*pair) for pair in zip(before, first.parameters(), strict=True))


def test_a_module_that_nobody_compiled_is_not_compiled() -> None:
    """A LightningModule has a place for its compiler, which is empty until there is one."""
    module = LightningModule()
    assert not is_compiled(module)
    assert is_compiled(torch.compile(module, backend="eager"))


def test_too_many_ways_to_freeze_a_block_are_told(warnings: Any) -> None:
    """Single tensors of a block: the warning comes when torch would not make another graph, not before."""
    model = compile_blocks(gpt(2), backend="eager")
    graphs = CompiledGraphs(model)
    x = torch.zeros(1, T, dtype=torch.long)
    with torch._dynamo.config.patch({LIMIT: 4, FAIL: True}):
        for step, parameter in enumerate(model.transformer.h[1].parameters()):
            parameter.requires_grad_(False)
            graphs.follow(step)
            if warnings():
                break
            model(x, x)[1].backward()
        with pytest.raises((torch._dynamo.exc.FailOnRecompileLimitHit, torch._dynamo.exc.Unsupported)):
            model(x, x)
        graphs.follow(step + 1)
    (warning,) = [text for text in warnings() if "frozen in" in text]

    assert "step 3: the compiled blocks have been frozen in 5 different ways" in warning


def test_what_cannot_be_compiled_by_blocks() -> None:
    """No blocks, or no backend."""
    with pytest.raises(ValueError, match="Linear has no repeated blocks"):
        compile_blocks(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="backend must be a text or a Callable. Got 3"):
        compile_blocks(gpt(2), backend=3)  # type: ignore[arg-type]


def test_blocks_of_transformers_share_their_graphs() -> None:
    """They get no empty KV cache, which each would read under its own number."""
    counter = CompileCounter()
    model = compile_blocks(ARCHITECTURES["gpt2"](), backend=counter)
    ids = torch.randint(3, 32, (2, 16))
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
    assert counter.frame_count == 1

    freeze_embeddings(model)
    freeze_first_n_layers(model, 2)
    model(input_ids=ids, labels=ids).loss.backward()
    assert counter.frame_count == 3


@pytest.mark.wide
@pytest.mark.parametrize(("name", "most"), [("llama", 3), ("bert", 3), ("vit", 3), ("t5", 8)])
def test_the_number_of_graphs_does_not_depend_on_the_depth(name: str, most: int) -> None:
    """Of a T5 the first block of each stack is another one: it makes the position bias."""
    counters = []
    for num_layers in (6, 11):
        torch._dynamo.reset()
        counter = CompileCounter()
        model = compile_blocks(deep(name, num_layers), backend=counter).train()
        for num_frozen in (0, 2, num_layers):
            freeze_embeddings(model)
            freeze_first_n_layers(model, num_frozen)
            inputs = IMAGES if name == "vit" else TOKENS_OF_ALL
            output = model(**inputs)
            (output.loss if "loss" in output else output.logits.sum()).backward()
        counters.append(counter.frame_count)
    assert counters[0] == counters[1] <= most


@pytest.mark.wide
def test_a_history_that_is_not_empty_is_used() -> None:
    """Generation and prefix tuning pass one."""
    model = ARCHITECTURES["gpt2"]().eval()
    ids = torch.randint(3, 32, (1, 8))
    plain = model.generate(ids, max_new_tokens=4, do_sample=False)
    history = transformers.DynamicCache()
    is_new = "cache" in inspect.signature(type(model).forward).parameters  # what it is called since 5.24
    key = "cache" if is_new else "past_key_values"
    with torch.no_grad():
        model(ids[:, :4], **{key: history})
    expected = model(ids[:, 4:], **{key: copy.deepcopy(history)}).logits
    compile_blocks(model, backend="eager")
    assert torch.equal(model(ids[:, 4:], **{key: history}).logits, expected)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), plain)


class Numbered(nn.Module):
    """A block that computes with its own number, which torch takes for a constant."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.linear, self.number = nn.Linear(4, 4), number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.number


def test_a_warning_says_that_torch_gives_up(warnings: Any) -> None:
    model = nn.Sequential(*(Numbered(number) for number in range(1, 12)))
    compile_blocks(model, backend="eager")
    model(torch.ones(2, 4))
    (warning,) = warnings()
    assert "torch.compile gives up on 'forward'" in warning
    assert f"after 8 graphs (torch._dynamo.config.{LIMIT})" in warning
    assert "number" in warning
