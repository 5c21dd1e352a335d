"""Blocks, embeddings, norms and heads of real architectures: by hand, and against the order they run in."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import peft
import pytest
import torch
from torch import nn

from lighter_freezers.selection.anatomy import Anatomy, anatomy_of
from lighter_freezers.selection.names import canonical_name
from tests.architectures import ARCHITECTURES, TorchTransformer


class Expected(NamedTuple):
    """What a model is made of, as prefixes of parameter names; `blocks` has the path of each stack."""

    blocks: dict[str, int]
    embeddings: Sequence[str] = ()
    norms: Sequence[str] = ()
    heads: Sequence[str] = ()
    tied: str | None = None
    others: Sequence[str] = ()


def bert(base: str, *heads: str, tied: bool = False, layers: str = "encoder.layer") -> Expected:
    word = f"{base}.embeddings.word_embeddings.weight"
    return Expected({f"{base}.{layers}": 3}, [f"{base}.embeddings."], [], heads, word if tied else None)


class ConvBlock(nn.Module):
    """A block without attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)


LLAMA = Expected({"model.layers": 3}, ["model.embed_tokens."], ["model.norm."], ["lm_head."])
GEMMA = LLAMA._replace(heads=[], tied="model.embed_tokens.weight")
GPT = Expected({"transformer.h": 3}, ["transformer.wte.", "transformer.wpe."], ["transformer.ln_f."])
BART = Expected(
    {"model.encoder.layers": 2, "model.decoder.layers": 3},
    [
        "model.shared.",
        *(f"model.{s}.{n}" for s in ("encoder", "decoder") for n in ("embed_pos", "layernorm_emb")),
    ],
    tied="model.shared.weight",
)
EXPECTED = {
    "gpt2": GPT._replace(tied="transformer.wte.weight"),
    "gpt2-classifier": GPT._replace(heads=["score."]),
    "neox": Expected(
        {"gpt_neox.layers": 3}, ["gpt_neox.embed_in."], ["gpt_neox.final_layer_norm."], ["lm_head."]
    ),
    "llama": LLAMA,
    "llama-classifier": LLAMA._replace(heads=["score."]),
    **dict.fromkeys(("mistral", "qwen2", "qwen3"), LLAMA),
    **dict.fromkeys(("gemma", "gemma2"), GEMMA),
    "opt": Expected(
        {"model.decoder.layers": 3},
        ["model.decoder.embed_tokens.", "model.decoder.embed_positions.", "model.decoder.project_in."],
        ["model.decoder.final_layer_norm."],
        ["model.decoder.project_out."],
        "model.decoder.embed_tokens.weight",
    ),
    "bert": bert("bert", "cls.", tied=True),
    "bert-classifier": bert("bert", "bert.pooler.", "classifier."),
    "roberta": bert("roberta", "classifier."),
    "xlm-roberta": Expected(  # registers its head first
        {"roberta.encoder.layer": 3},
        ["lm_head.decoder.weight", "roberta.embeddings."],
        [],
        ["lm_head.bias", "lm_head.dense.", "lm_head.layer_norm."],
        "lm_head.decoder.weight",
    ),
    "distilbert": bert("distilbert", "vocab_", tied=True, layers="transformer.layer"),
    "albert": Expected(
        {"albert.encoder.albert_layer_groups.0.albert_layers": 1},
        ["albert.embeddings.", "albert.encoder.embedding_hidden_mapping_in."],
        heads=["albert.pooler.", "classifier."],
    ),
    "t5": Expected(
        {"encoder.block": 2, "decoder.block": 3},
        ["shared."],
        ["encoder.final_layer_norm.", "decoder.final_layer_norm."],
        tied="shared.weight",
    ),
    "bart": BART,
    "bart-classifier": BART._replace(heads=["classification_head."], tied=None),
    "whisper": Expected(
        {"model.encoder.layers": 2, "model.decoder.layers": 3},
        ["model.encoder.conv", "model.encoder.embed_positions.", "model.decoder.embed_"],
        ["model.encoder.layer_norm.", "model.decoder.layer_norm."],
        tied="model.decoder.embed_tokens.weight",
    ),
    "vit": Expected({"vit.layers": 3}, ["vit.embeddings."], ["vit.layernorm."], ["classifier."]),
    "swin": Expected(
        {"swin.encoder.layers.0.blocks": 1, "swin.encoder.layers.1.blocks": 2},
        ["swin.embeddings."],
        ["swin.layernorm."],
        ["classifier."],
    ),
    "convnext": Expected(
        {"convnext.encoder.stages.0.layers": 2, "convnext.encoder.stages.1.layers": 3},
        ["convnext.embeddings."],
        ["convnext.layernorm."],
        ["classifier."],
    ),
    "resnet": Expected(
        {"resnet.encoder.stages.0.layers": 2, "resnet.encoder.stages.1.layers": 3},
        ["resnet.embedder."],
        heads=["classifier."],
    ),
    "resnet18": Expected(
        dict.fromkeys((f"layer{i}" for i in range(1, 5)), 2), ["conv1.", "bn1."], [], ["fc."]
    ),
    "ours": GPT._replace(tied="transformer.wte.weight"),
    "ours-classifier": GPT._replace(heads=["classifier_head."]),
    "ours-scorer": GPT._replace(embeddings=["cls_emb", *GPT.embeddings], heads=["sequence_head."]),
    "torch": Expected(
        {"encoder.layers": 3},
        ["position", "embedding."],
        ["encoder.norm."],
        ["classifier."],
        others=["temperature"],
    ),
    "shared": Expected({"layers": 1}, ["embedding."], [], ["head."]),
    "sequential": Expected({"": 2}, ["0."], ["4."], ["5."]),
    "mlp": Expected({"": 3}),
}


def below(names: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """The names that begin with one of the prefixes."""
    return [name for name in names if name.startswith(tuple(prefixes))]


def check(anatomy: Anatomy, names: Sequence[str], expected: Expected, prefix: str = "") -> None:
    """Compare what was found with prefixes of the names that torch gives."""
    own = [name.removeprefix(prefix) for name in names]

    def found(group: Sequence[str]) -> list[str]:
        return [name.removeprefix(prefix) for name in group]

    assert {s.path.removeprefix(prefix): len(s.blocks) for s in anatomy.stacks} == expected.blocks
    assert found(anatomy.embeddings) == below(own, expected.embeddings)
    assert found(anatomy.final_norms) == below(own, expected.norms)
    assert found(anatomy.heads) == below(own, expected.heads)
    assert found(anatomy.others) == below(own, expected.others)
    assert found(anatomy.tied) == ([expected.tied] if expected.tied else [])
    assert anatomy.is_head_tied is (expected.tied is not None)
    groups = [*anatomy.blocks, anatomy.embeddings, anatomy.final_norms, anatomy.heads, anatomy.others]
    assert sorted(name for group in groups for name in group) == sorted(names)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_its_place(name: str) -> None:
    """Each is in one place, and it is the one that a reader of the model's code would say."""
    model = ARCHITECTURES[name]()
    names = [n for n, _ in model.named_parameters()]

    check(anatomy_of(model), names, EXPECTED[name])


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "shared"])
def test_a_block_is_what_lies_below_its_path(name: str) -> None:
    """In order, and nothing of one block is in another."""
    model = ARCHITECTURES[name]()
    names = [n for n, _ in model.named_parameters()]
    for stack in anatomy_of(model).stacks:
        for path, block in zip(stack.block_paths, stack.blocks, strict=True):
            inside = below(names, [f"{path}."])
            assert inside
            assert set(inside) <= set(block)
            model.get_submodule(path)


INPUTS: dict[str, dict[str, torch.Tensor]] = {
    "input_ids": {"input_ids": torch.ones(2, 4, dtype=torch.long)},
    "decoder": {
        "input_ids": torch.ones(2, 4, dtype=torch.long),
        "decoder_input_ids": torch.ones(2, 3, dtype=torch.long),
    },
    "whisper": {
        "input_features": torch.zeros(2, 4, 16),
        "decoder_input_ids": torch.ones(2, 3, dtype=torch.long),
    },
    "vit": {"pixel_values": torch.zeros(2, 3, 8, 8)},
    "pyramid": {"pixel_values": torch.zeros(2, 3, 16, 16)},
}
KINDS = {
    **dict.fromkeys(("t5", "bart"), "decoder"),
    **dict.fromkeys(("swin", "convnext", "resnet"), "pyramid"),
    "whisper": "whisper",
    "vit": "vit",
}


def run_order(model: nn.Module, inputs: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """When each module began and ended first, by its path."""
    seen: dict[str, list[int]] = {}
    clock = iter(range(10**6))
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: seen.setdefault(path, []).append(next(clock)))
        module.register_forward_hook(lambda *_, path=path: seen[path].append(next(clock)))
    model.eval()(**inputs)
    return {path: (times[0], times[1]) for path, times in seen.items()}


RUN = [name for name in ARCHITECTURES if name not in ("resnet18", "torch", "shared", "sequential", "mlp")]


@pytest.mark.parametrize("name", RUN)
def test_the_places_are_those_of_a_real_forward(name: str) -> None:
    """Blocks run in the order given, embeddings before those of their stack, norms and heads behind."""
    model = ARCHITECTURES[name]()
    anatomy = anatomy_of(model)
    inputs = INPUTS[KINDS.get(name, "input_ids")]
    times = run_order(model, inputs)
    blocks = [times[path] for stack in anatomy.stacks for path in stack.block_paths]
    assert blocks == sorted(blocks)
    assert all(end < begin for (_, end), (begin, _) in zip(blocks, blocks[1:], strict=False))
    for stack in anatomy.stacks:
        end = times[stack.block_paths[-1]][1]
        assert all(times[n.rpartition(".")[0]][0] > end for n in stack.final_norms)
    last = blocks[-1][1]
    owners = {n.rpartition(".")[0] for n in anatomy.heads} & times.keys()
    assert all(times[owner][1] > last for owner in owners)
    if len(anatomy.stacks) == 1:
        names = {*anatomy.embeddings} - ({*anatomy.tied} if name == "xlm-roberta" else set())  # the head's
        owners = {n.rpartition(".")[0] for n in names} & times.keys() - {""}
        assert owners
        assert all(times[owner][0] < blocks[0][0] for owner in owners)


def test_stacks_and_blocks_have_titles() -> None:
    """An encoder is told from a decoder, a stage by its place; a single stack needs no name."""
    titles = {
        name: anatomy_of(ARCHITECTURES[name]()).block_titles for name in ("llama", "t5", "swin", "resnet18")
    }

    assert titles["llama"] == ("0", "1", "2")
    assert titles["t5"] == ("encoder.0", "encoder.1", "decoder.0", "decoder.1", "decoder.2")
    assert titles["swin"] == ("layers.0.0", "layers.1.0", "layers.1.1")
    assert titles["resnet18"][:3] == ("layer1.0", "layer1.1", "layer2.0")
    for name, titles_of_two in (("bart", ["encoder", "decoder"]), ("whisper", ["encoder", "decoder"])):
        assert [stack.title for stack in anatomy_of(ARCHITECTURES[name]()).stacks] == titles_of_two


def test_what_downsamples_belongs_to_the_nearest_block() -> None:
    """Swin does it behind a stage, ConvNeXt before one."""
    swin, convnext = (anatomy_of(ARCHITECTURES[name]()) for name in ("swin", "convnext"))

    assert any("downsample.reduction" in name for name in swin.blocks[0])
    assert any("stages.1.downsampling_layer" in name for name in convnext.blocks[2])


def test_what_stands_between_two_stages_belongs_to_the_block_before() -> None:
    """As near to the one as to the other, it runs behind the first; a norm there is no final norm."""
    stages = [nn.Sequential(ConvBlock(4), ConvBlock(4)) for _ in range(2)]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), stages[0], nn.BatchNorm2d(4), stages[1], nn.Linear(4, 2))
    anatomy = anatomy_of(model)

    assert [stack.path for stack in anatomy.stacks] == ["1", "3"]
    assert {"2.weight", "2.bias"} <= set(anatomy.blocks[1])
    assert (anatomy.final_norms, anatomy.embeddings) == ((), ("0.weight", "0.bias"))


def test_layers_that_share_weights_are_one() -> None:
    """An ALBERT of three layers and a list of one module four times say how often they run."""
    (albert,) = anatomy_of(ARCHITECTURES["albert"]()).stacks
    (shared,) = anatomy_of(ARCHITECTURES["shared"]()).stacks

    assert (len(albert.blocks), albert.num_passes) == (1, 3)
    assert (len(shared.blocks), shared.num_passes) == (1, 4)
    assert anatomy_of(ARCHITECTURES["llama"]()).stacks[0].num_passes == 3


@pytest.mark.parametrize(
    ("name", "predicts"),
    [("gpt2", True), ("llama", True), ("bert", True), ("bert-classifier", False), ("vit", False)],
)
def test_a_head_that_predicts_tokens_is_known_by_its_size(name: str, predicts: bool) -> None:
    """It has an output for each row of the embedding, or shares its weight."""
    assert anatomy_of(ARCHITECTURES[name]()).predicts_tokens is predicts


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")
def test_a_model_wrapped_by_peft() -> None:
    """LoRA belongs to what it adapts, also on an embedding; a head that is saved whole is a head."""
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "wte"], modules_to_save=["score"])
    model = peft.get_peft_model(ARCHITECTURES["gpt2-classifier"](), config)
    names = [name for name, _ in model.named_parameters()]

    check(anatomy_of(model), names, EXPECTED["gpt2-classifier"], prefix="base_model.model.")
    assert any("lora_embedding_A" in name for name in anatomy_of(model).embeddings)
    assert any("lora_A" in name for name in anatomy_of(model).blocks[2])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")
def test_a_tied_head_under_lora_is_tied() -> None:
    """The weight below LoRA on the embedding is the head's."""
    config = peft.LoraConfig(r=2, target_modules=["wte"])
    model = peft.get_peft_model(ARCHITECTURES["gpt2"](), config)

    assert anatomy_of(model).tied == ("base_model.model.transformer.wte.base_layer.weight",)


@pytest.mark.parametrize("name", ["llama", "t5", "swin", "sequential"])
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "parallel"])
def test_wrappers_change_nothing(name: str, wrap: Any) -> None:
    """Compiled or parallel, whole or in a LightningModule, the names are the canonical ones."""
    model = ARCHITECTURES[name]()
    names = [n for n, _ in model.named_parameters()]
    wrapped, inside = wrap(model), nn.Module()
    inside.network = wrapped

    check(anatomy_of(wrapped), names, EXPECTED[name])
    if wrap is torch.compile:
        full = [canonical_name(n) for n, _ in inside.named_parameters()]
        anatomy = anatomy_of(inside)
        assert sorted(anatomy.embeddings) == sorted(f"network.{n}" for n in anatomy_of(model).embeddings)
        assert {n for block in anatomy.blocks for n in block} <= set(full)


def test_the_top_takes_the_norm_of_a_stack_along() -> None:
    """The encoder's norm goes with the encoder's last block, not with the decoder's."""
    anatomy = anatomy_of(ARCHITECTURES["t5"]())
    decoder, encoder = "decoder.final_layer_norm.weight", "encoder.final_layer_norm.weight"

    assert anatomy.top(0) == ()
    assert set(anatomy.top(1)) == {*anatomy.blocks[4], decoder}
    assert encoder not in anatomy.top(3)
    assert {encoder, decoder} <= set(anatomy.top(4))
    assert len(anatomy.top(5)) == sum(map(len, anatomy.blocks)) + 2


def test_convolutions_before_linear_layers() -> None:
    """The linear layers behind the convolutions of a VGG are its head, not more of its blocks."""
    model = nn.Module()
    model.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.MaxPool2d(2))
    model.classifier = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    anatomy = anatomy_of(model)

    assert anatomy.blocks == (
        ("features.0.weight", "features.0.bias"),
        ("features.2.weight", "features.2.bias"),
    )
    assert set(anatomy.heads) == {f"classifier.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}


def test_a_model_without_blocks() -> None:
    """Its parameters have no place, its embeddings do, and asking for layers says why there are none."""
    model = nn.Module()
    model.table, model.out = nn.Embedding(4, 2), nn.Linear(2, 2)
    anatomy = anatomy_of(model)

    assert (anatomy.stacks, anatomy.blocks, anatomy.heads) == ((), (), ())
    assert anatomy.embeddings == ("table.weight",)
    assert anatomy.others == ("out.weight", "out.bias")
    with pytest.raises(
        ValueError, match=r"freeze_all needs layers, but Module has no blocks.*freeze_by_name"
    ):
        anatomy.blocks_for("freeze_all")


def test_the_stem_stays_the_stem_when_a_single_number_stands_beside_it() -> None:
    """A table of positions is an embedding, a temperature is not."""
    anatomy = anatomy_of(TorchTransformer())

    assert anatomy.embeddings == ("position", "embedding.weight")
    assert anatomy.others == ("temperature",)
