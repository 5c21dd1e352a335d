"""The GPT against transformers' GPT-2 and against what the language model was before it had modes."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lighter_freezers import GPT, GPTConfig
from tests.gpt.networks import SMALL, classifier, gradients, ignored, scorer, small, tokens, with_cls


def test_logits_and_gradients_equal_those_of_transformers_gpt2() -> None:
    """The same weights in an independent implementation; its linear layers are stored transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = small(bias=True)
    sizes = {"vocab_size": 61, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0)
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=0, eos_token_id=0))
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {k: v.T if k.endswith(transposed) else v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(weights)
    logits, loss = ours(tokens(), tokens())
    reference = theirs(tokens())

    assert torch.allclose(logits, reference.logits, atol=1e-5)
    assert loss is not None
    loss.backward()
    F.cross_entropy(reference.logits.view(-1, 61), tokens().view(-1)).backward()
    gradient = theirs.transformer.h[0].attn.c_attn.weight.grad
    assert torch.allclose(ours.transformer.h[0].attn.c_attn.weight.grad, gradient.T, atol=1e-6)


def test_classes_and_gradients_equal_those_of_a_bidirectional_encoder() -> None:
    """Torch's own pre-norm encoder with the same weights, its padding mask the other way round."""
    ours = classifier(bias=True)
    layer = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True, norm_first=True
    )
    names = {
        "self_attn.in_proj_": "attn.c_attn.",
        "self_attn.out_proj.": "attn.c_proj.",
        "linear1.": "mlp.c_fc.",
        "linear2.": "mlp.c_proj.",
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
    }
    real = torch.arange(16) < torch.tensor([16, 9, 1])[:, None]
    x = ours.transformer.wte(tokens()) + ours.transformer.wpe.weight
    for block in ours.transformer.h:
        for theirs, mine in names.items():
            for kind in ("weight", "bias"):
                layer.get_parameter(theirs + kind).data = block.get_parameter(mine + kind).data
        x = layer(x, src_key_padding_mask=~real)
    expected = ours.classifier_head(ours.transformer.ln_f(x))

    assert torch.allclose(ours(tokens(), attention_mask=real)[0][real], expected[real], atol=1e-5)


def initial_values(seed: int) -> dict[str, Tensor]:
    """Default values drawn in the order of construction, then normal ones in the order of names."""
    torch.manual_seed(seed)
    modules = {"transformer.wte": nn.Embedding(61, 16), "transformer.wpe": nn.Embedding(16, 16)}
    for index in range(2):
        for name, size in (
            ("attn.c_attn", (16, 48)),
            ("attn.c_proj", (16, 16)),
            ("mlp.c_fc", (16, 64)),
            ("mlp.c_proj", (64, 16)),
        ):
            modules[f"transformer.h.{index}.{name}"] = nn.Linear(*size, bias=False)
    modules["lm_head"] = nn.Linear(16, 61, bias=False)
    for name, module in modules.items():
        nn.init.normal_(module.weight, std=0.02 / math.sqrt(4) if name.endswith("c_proj") else 0.02)
    return {f"{name}.weight": module.weight for name, module in modules.items()}


def plain_logits(weights: dict[str, Tensor], input_ids: Tensor) -> Tensor:
    """What the language model computed before it had modes, in one piece."""
    x = F.embedding(input_ids, weights["transformer.wte.weight"])
    x = x + weights["transformer.wpe.weight"][: input_ids.shape[1]]
    for index in range(2):
        block = {k.removeprefix(f"transformer.h.{index}."): v for k, v in weights.items()}
        normal = F.layer_norm(x, (16,), block["ln_1.weight"])
        packed = F.linear(normal, block["attn.c_attn.weight"]).view(*input_ids.shape, 3, 2, 8)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + F.linear(y, block["attn.c_proj.weight"])
        inside = F.gelu(
            F.linear(F.layer_norm(x, (16,), block["ln_2.weight"]), block["mlp.c_fc.weight"]),
            approximate="tanh",
        )
        x = x + F.linear(inside, block["mlp.c_proj.weight"])
    return F.linear(F.layer_norm(x, (16,), weights["transformer.ln_f.weight"]), weights["lm_head.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_the_language_model_is_what_it_was_to_the_last_bit(tied: bool) -> None:
    """Initial values, logits, loss and gradients; also of the method that gives the loss alone."""
    torch.set_num_threads(1)
    targets = tokens().flip(1)
    torch.manual_seed(7)
    model = GPT(GPTConfig(**SMALL, tie_weights=tied))
    initial = initial_values(seed=7)
    for name, value in initial.items():
        assert torch.equal(
            model.state_dict()[name],
            value if not tied or name != "lm_head.weight" else initial["transformer.wte.weight"],
        )
    logits, loss = model(tokens(), targets)
    assert loss is not None
    loss.backward()
    ours = gradients(model)
    model.zero_grad()
    alone = model.loss(tokens(), targets)
    alone.backward()
    ours_alone = gradients(model)
    model.zero_grad()
    expected = plain_logits(dict(model.named_parameters(remove_duplicate=False)), tokens())
    before = F.cross_entropy(expected.view(-1, 61), targets.view(-1))
    before.backward()

    assert torch.equal(logits, expected)
    assert torch.equal(loss, before)
    assert torch.equal(alone, before)
    for name, gradient in gradients(model).items():
        assert torch.equal(ours[name], gradient), name
        assert torch.equal(ours_alone[name], gradient), name


def test_parameters_are_called_as_in_nanogpt() -> None:
    """Checkpoints and layer names rely on it."""
    parts = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    blocks = [f"h.{index}.{part}" for index in range(2) for part in parts]
    names = [f"transformer.{name}.weight" for name in ("wte", "wpe", *blocks, "ln_f")]

    assert [name for name, _ in small().named_parameters()] == names
    assert "lm_head.weight" in small().state_dict()
    model, untied = small(), small(tie_weights=False)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert untied.lm_head.weight is not untied.transformer.wte.weight
    assert list(classifier().state_dict()) == [*names, "classifier_head.weight", "classifier_head.bias"]
    assert list(scorer().state_dict()) == [
        "cls_embedding",
        *names,
        "sequence_head.weight",
        "sequence_head.bias",
    ]


def test_there_are_no_buffers_and_rotary_has_no_position_table() -> None:
    """No mask and no table of angles: nothing but weights is saved or moved."""
    model = small(use_rotary_embeddings=True)

    assert not list(model.buffers())
    assert not any("wpe" in name for name in model.state_dict())


def test_the_initial_loss_is_that_of_a_guess() -> None:
    """About ln(vocabulary), by the initial deviations."""
    _, loss = small()(tokens(), tokens().flip(1))

    assert loss is not None
    assert loss.item() == pytest.approx(math.log(61), abs=0.1)
    projection = small(n_embd=128, n_layer=8).transformer.h[0].mlp.c_proj.weight
    assert projection.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_heads_begin_small() -> None:
    """Weights and the [CLS] embedding with deviation 0.02, biases 0."""
    big = scorer(n_embd=256)

    assert big.sequence_head.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert big.cls_embedding.std().item() == pytest.approx(0.02, rel=0.2)
    assert not big.sequence_head.bias.any()
    assert not classifier().classifier_head.bias.any()


def test_targets_without_a_loss_are_left_out() -> None:
    """Torch's default ignore_index: the mean is over the others."""
    targets = tokens()
    targets[:, :8] = F.cross_entropy.__defaults__[2]
    logits, loss = small()(tokens(), targets)

    expected = F.cross_entropy(logits[:, 8:].reshape(-1, 61), tokens()[:, 8:].reshape(-1))
    assert torch.allclose(loss, expected)


def few_targets() -> Tensor:
    """Two of 48 positions."""
    targets = torch.full((3, 16), ignored())
    targets[0, 3], targets[2, 9] = 5, 11
    return targets


def rows_through_head(model: GPT) -> list[int]:
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(args[0].numel() // 16))
    return rows


@pytest.mark.parametrize("tied", [True, False])
def test_only_positions_with_a_target_go_through_the_head(tied: bool) -> None:
    """Where only the loss is wanted; it and its gradients are those of all logits."""
    model = small(tie_weights=tied)
    _, expected = model(tokens(), few_targets())
    assert expected is not None
    expected.backward()
    theirs = gradients(model)
    model.zero_grad()
    rows = rows_through_head(model)
    loss = model.loss(tokens(), few_targets())
    loss.backward()

    assert rows == [2]
    assert torch.allclose(loss, expected)
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, theirs[name], atol=1e-7), name


@pytest.mark.parametrize(("choice", "num_rows"), [(None, 2), (True, 2), (False, 48)])
def test_the_selection_can_be_switched(choice: bool | None, num_rows: int) -> None:
    """Off, or on where it costs a host read."""
    model = small(head_on_supervised_only=choice)
    rows = rows_through_head(model)
    model.loss(tokens(), few_targets())

    assert rows == [num_rows]


def test_the_loss_alone_is_that_of_forward_in_every_mode() -> None:
    """And forward gives no predictions when told so."""
    real = torch.arange(16) < torch.tensor([16, 9, 1])[:, None]
    cases: list[tuple[GPT, Tensor, Tensor]] = [
        (small(), tokens(), tokens().flip(1)),
        (classifier(class_weights="balanced"), tokens(), tokens() % 3),
        (scorer(), with_cls(), torch.tensor([0.0, 0.5, 1.0])),
    ]
    for model, input_ids, targets in cases:
        predictions, loss = model(input_ids, targets, attention_mask=real)
        none, same = model(input_ids, targets, attention_mask=real, with_logits=False)

        assert torch.allclose(loss, same)
        assert torch.equal(same, model.loss(input_ids, targets, attention_mask=real))
        assert predictions.numel()
        assert not none.numel()


def test_a_model_can_be_copied_and_moved() -> None:
    """With its objective, its tie and its weights of classes."""
    for model in (small(), classifier(class_weights=[1, 2, 3]), scorer()):
        twin = copy.deepcopy(model).double()
        assert torch.allclose(twin(with_cls())[0].float(), model(with_cls())[0], atol=1e-5)
    twin = copy.deepcopy(small())
    assert twin.lm_head.weight is twin.transformer.wte.weight


def test_a_mapping_is_a_config() -> None:
    """As YAML has it; an unknown key comes back with the known ones."""
    assert GPT(SMALL).config == GPTConfig(**SMALL)
    with pytest.raises(ValueError, match="has no field n_layers. Fields: block_size, vocab_size, n_layer"):
        GPT({**SMALL, "n_layers": 2})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_head": 3}, ValueError, "n_embd=16 is not a multiple of n_head=3"),
        ({"n_layer": 0}, ValueError, "n_layer must be at least 1"),
        ({"vocab_size": "1024"}, TypeError, "vocab_size must be a whole number"),
        ({"dropout": 1.0}, ValueError, r"dropout must be a number in \[0, 1\)"),
        ({"bias": "no"}, TypeError, "bias must be true or false"),
        ({"n_head": 16, "use_rotary_embeddings": True}, ValueError, "pairs of channels, but a head has 1"),
    ],
)
def test_an_impossible_size_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    """When the config is read, with the way out."""
    with pytest.raises(error, match=message):
        small(**changes)


def test_a_sequence_that_is_too_long_is_refused() -> None:
    """With both lengths."""
    with pytest.raises(ValueError, match="17 tokens is longer than block_size=16"):
        small()(tokens(1, 17))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], r"input_ids must be a tensor of token ids, \(batch, time\). Got list"),
        (tokens(1, 4)[0], r"one row per sequence: \(batch, time\). Got \(4,\)"),
        (tokens(1, 4).float(), "input_ids must be whole numbers.*of torch.float32"),
        (tokens(1, 4) + 1000, r"ids from 10\d\d to 10\d\d, and the vocabulary has \d+, counted from 0"),
    ],
)
def test_what_is_no_batch_of_ids_is_refused(given: Any, message: str) -> None:
    """In training and in generation, before torch fails in the embedding."""
    for call in (small(), lambda ids: small().generate(ids, 1)):
        with pytest.raises((TypeError, ValueError), match=message):
            call(given)
