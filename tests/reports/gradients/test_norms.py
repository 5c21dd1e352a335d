"""Gradient norms against those that torch and plain loops give, on real transformers."""

import math
import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lighter_freezers import GPT, apply_lora, measure_gradient_norms
from lighter_freezers.reports.gradients.norms import GradientNorms, NormPlan
from tests.lab import TinyNet

ATTENTION = re.compile(r"\.(self_attn|attn|attention)\.(?!output\.LayerNorm)")
MLP = re.compile(r"\.(mlp|intermediate)\.|(?<!attention)\.output\.dense\.")


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=40, **sizes))


def gpt(**options: Any) -> nn.Module:
    return GPT({"vocab_size": 40, "block_size": 8, "n_layer": 3, "n_head": 2, "n_embd": 16, **options})


def with_gradients(model: nn.Module) -> nn.Module:
    """Every parameter that trains gets a random gradient."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def norm(parameters: Iterable[nn.Parameter]) -> float:
    """Slow and plain, in double precision."""
    return math.sqrt(sum(p.grad.double().square().sum().item() for p in parameters if p.grad is not None))


@pytest.mark.parametrize("build", [llama, bert, gpt])
def test_the_norms_are_those_of_a_plain_loop(build: Any) -> None:
    """Attention, MLP and total; in BERT `attention.output` is attention, and no head."""
    model = with_gradients(build())
    found, named = measure_gradient_norms(model), dict(model.named_parameters())
    attention = [p for name, p in named.items() if ATTENTION.search(name)]
    mlp = [p for name, p in named.items() if MLP.search(name)]

    assert found["attention_norm"] == pytest.approx(norm(attention), rel=1e-6)
    assert found["mlp_norm"] == pytest.approx(norm(mlp), rel=1e-6)
    assert found["total_norm"] == pytest.approx(norm(named.values()), rel=1e-6)
    grads = [parameter.grad for parameter in named.values()]
    assert found["total_norm"] == pytest.approx(torch.nn.utils.get_total_norm(grads).item(), rel=1e-5)


def test_llama_has_an_embedding_a_head_and_layers() -> None:
    """Each against the parameters of its module."""
    model = with_gradients(llama())
    found = measure_gradient_norms(model)
    layer = model.get_submodule("model.layers.2")

    assert found["embed_norm"] == pytest.approx(norm(model.get_submodule("model.embed_tokens").parameters()))
    assert found["lm_head_norm"] == pytest.approx(norm(model.get_submodule("lm_head").parameters()))
    assert list(found["layer_data"]) == ["layer_0", "layer_1", "layer_2"]
    assert found["layer_data"]["layer_2"]["attention"] == pytest.approx(norm(layer.self_attn.parameters()))
    assert found["layer_data"]["layer_2"]["mlp"] == pytest.approx(norm(layer.mlp.parameters()))


def test_a_classifier_and_its_pooler_are_the_head() -> None:
    """Of BERT, where the embeddings have a norm of their own."""
    model = with_gradients(bert())
    found = measure_gradient_norms(model)
    head = [p for name, p in model.named_parameters() if "pooler" in name or "classifier" in name]

    assert found["lm_head_norm"] == pytest.approx(norm(head))
    embeddings = model.get_submodule("bert.embeddings")
    assert found["embed_norm"] == pytest.approx(norm(embeddings.parameters()))


def test_a_tied_head_counts_once() -> None:
    """As embed; there is no norm of a head, and the total has it once."""
    model = with_gradients(gpt())
    found = measure_gradient_norms(model)

    assert found["lm_head_norm"] is None
    assert found["total_norm"] == pytest.approx(norm(model.parameters()))


def test_a_frozen_layer_has_no_norm() -> None:
    """None, and not 0; the others keep their places."""
    model = llama()
    model.get_submodule("model.layers.1.mlp").requires_grad_(False)
    found = measure_gradient_norms(with_gradients(model))

    assert found["layer_data"]["layer_1"]["mlp"] is None
    assert found["layer_data"]["layer_2"]["mlp"] > 0
    assert found["layer_data"]["layer_1"]["attention"] > 0


def test_adapters_count_in_their_layer() -> None:
    """With a frozen base, all there is are the norms of LoRA."""
    config = {"r": 2, "target_modules": ["c_attn", "c_fc"]}
    model = with_gradients(apply_lora(gpt(), config))
    found = measure_gradient_norms(model)
    own = [p for name, p in model.named_parameters() if "h.1.mlp.c_fc.lora_" in name]

    assert len(own) == 2
    assert found["layer_data"]["layer_1"]["mlp"] == pytest.approx(norm(own))
    assert found["embed_norm"] is found["lm_head_norm"] is None


def test_other_models_have_their_components() -> None:
    """Without a stack of transformer blocks there are no layers."""
    model = with_gradients(TinyNet())
    found = measure_gradient_norms(model)

    assert list(found) == [
        *("layer1_norm", "layer2_norm", "layer10_norm", "head_norm"),
        *("total_norm", "layer_data"),
    ]
    assert found["layer10_norm"] == pytest.approx(norm(model.layer10.parameters()))
    assert found["layer_data"] == {}


def test_norms_of_half_precision_are_precise() -> None:
    """A norm in bfloat16 would have an error of up to 0.4 %; a model may mix precisions."""
    model = gpt()
    model.get_submodule("transformer.h.0").to(torch.bfloat16)
    found = measure_gradient_norms(with_gradients(model))

    assert found["total_norm"] == pytest.approx(norm(model.parameters()), rel=1e-5)


def test_sparse_gradients_are_measured() -> None:
    """Rows that come twice are added up first."""
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1))
    model(torch.tensor([1, 1, 7])).sum().backward()
    dense = model[0].weight.grad.to_dense()

    assert measure_gradient_norms(model)["0_norm"] == pytest.approx(dense.norm().item())


def test_a_model_without_gradients_is_an_error() -> None:
    """Most likely `backward` was not called, or `zero_grad` was."""
    with pytest.raises(RuntimeError, match="between loss.backward"):
        measure_gradient_norms(TinyNet())


class Operators(TorchDispatchMode):
    """Counts what torch dispatches, in place of a GPU's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_a_measurement_is_a_few_operators_and_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of tensors."""
    plan, reads = NormPlan(with_gradients(gpt(n_layer=12))), []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(1) or tolist(tensor))
    with Operators() as operators:
        plan.measure([torch.tensor(2.0)])

    assert len(operators.names) <= 10
    assert not {"_local_scalar_dense", "is_nonzero", "equal", "nonzero"} & set(operators.names)
    assert len(reads) == 1


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_shared_clipping_is_torchs_to_the_bit(max_norm: float) -> None:
    """And the norms are those before it."""
    ours, theirs = with_gradients(llama()), with_gradients(llama())
    before = measure_gradient_norms(ours)
    optimizer_order = list(reversed(list(ours.parameters())))
    norms = NormPlan(ours).clip(optimizer_order, max_norm, [torch.tensor(2.0)])
    torch.nn.utils.clip_grad_norm_(list(reversed(list(theirs.parameters()))), max_norm)

    assert norms is not None
    assert norms.total == pytest.approx(before["total_norm"])
    assert norms.extras == (2.0,)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_clipping_of_other_parameters_is_not_shared() -> None:
    """Where a gradient is not the optimizer's, nothing is done, and the answer is None."""
    model = with_gradients(llama())
    before = [parameter.grad.clone() for parameter in model.parameters()]
    plan = NormPlan(model)

    assert plan.clip(list(model.parameters())[1:], 0.1) is None
    assert plan.clip([*model.parameters(), with_gradients(TinyNet()).head.weight], 0.1) is None
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=True))


def test_clipping_of_half_precision_is_not_shared() -> None:
    """Torch rounds its norms there, and ours are precise: the two would not be equal."""
    model = with_gradients(llama().to(torch.bfloat16))

    assert NormPlan(model).clip(list(model.parameters()), 0.1) is None


def test_names_of_wrappers_do_not_matter() -> None:
    """A LightningModule's attribute, and a block of which each is compiled."""
    model = gpt()
    plain = measure_gradient_norms(with_gradients(model))
    wrapped = nn.Module()
    wrapped.network = model
    for index, block in enumerate(model.get_submodule("transformer.h")):
        model.get_submodule("transformer.h")[index] = torch.compile(block)

    assert measure_gradient_norms(wrapped) == plain


def test_loggers_get_many_groups_by_blocks() -> None:
    """The norm of a block is that of all its layers; missing ones add nothing, and the rest is unchanged."""
    groups: dict[str, float | None] = {f"layer1.{n}.conv{k}": 3.0 + k for n in range(12) for k in range(2)}
    norms = GradientNorms({**groups, "layer1.0.conv1": None, "fc": 0.1}, {}, 9.0)

    named = norms.metrics(per_layer=False)
    assert len(named) == 12 + 2
    assert named["gradient_norm/layer1.0"] == 3.0
    assert named["gradient_norm/layer1.11"] == 5.0
    assert (named["gradient_norm/fc"], named["gradient_norm/total"]) == (0.1, 9.0)
    few = GradientNorms({"layer1.0.conv0": 3.0, "layer1.0.conv1": 4.0}, {}, 5.0).metrics(per_layer=False)
    assert [*few.values()] == [3.0, 4.0, 5.0]
