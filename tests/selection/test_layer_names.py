"""`attn.2`, `mlp.0`, `ln_f` mean the same in every transformer, and unknown names say what there is."""

import pytest
import torch
import torchvision
import transformers
from torch import nn

from lighter_freezers.gpt import GPT
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.block_indices import block_indices, counts_blocks
from lighter_freezers.selection.layer_names import (
    components,
    expand_layers,
    parameters_of_layer,
)
from tests.architectures import ARCHITECTURES

SIZES = {"vocab_size": 32, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def gpt2(num_layers: int = 2) -> nn.Module:
    config = transformers.GPT2Config(vocab_size=32, n_embd=8, n_layer=num_layers, n_head=2, **TOKENS)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(num_hidden_layers=2, num_key_value_heads=1, **SIZES, **TOKENS)
    return transformers.LlamaForCausalLM(config)


def gemma2() -> nn.Module:
    config = transformers.Gemma2Config(
        num_hidden_layers=2, num_key_value_heads=1, head_dim=4, **SIZES, **TOKENS
    )
    return transformers.Gemma2ForCausalLM(config)


def opt() -> nn.Module:
    sizes = {
        "vocab_size": 32,
        "hidden_size": 8,
        "word_embed_proj_dim": 8,
        "ffn_dim": 16,
        "num_attention_heads": 2,
    }
    return transformers.OPTForCausalLM(transformers.OPTConfig(num_hidden_layers=2, **sizes, **TOKENS))


def neox() -> nn.Module:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(num_hidden_layers=2, **SIZES, **TOKENS))


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(num_hidden_layers=2, **SIZES))


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(vocab_size=32, dim=8, hidden_dim=16, n_layers=2, n_heads=2)
    return transformers.DistilBertForMaskedLM(config)


class Wrapper(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class ConvBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 2, 1)
        self.conv2 = nn.Conv1d(2, 2, 1)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 2, 1)
        self.layers = nn.Sequential(ConvBlock(), ConvBlock())
        self.head = nn.Linear(2, 2)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Linear(2, 2)
        self.layer2 = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.head = nn.Linear(2, 2)


MODELS = {
    gpt2: ("transformer.h", "transformer.h.1.attn.", "transformer.h.1.mlp.", "transformer.wte."),
    llama: ("model.layers", "model.layers.1.self_attn.", "model.layers.1.mlp.", "model.embed_tokens."),
    gemma2: ("model.layers", "model.layers.1.self_attn.", "model.layers.1.mlp.", "model.embed_tokens."),
    opt: (
        "model.decoder.layers",
        "model.decoder.layers.1.self_attn.",
        "model.decoder.layers.1.fc",
        "model.decoder.embed_t",
    ),
    neox: ("gpt_neox.layers", "gpt_neox.layers.1.attention.", "gpt_neox.layers.1.mlp.", "gpt_neox.embed_in."),
    distilbert: (
        "distilbert.transformer.layer",
        "distilbert.transformer.layer.1.attention.",
        "distilbert.transformer.layer.1.ffn.",
        "distilbert.embeddings.word_embeddings.",
    ),
}


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "wrap", [lambda model: model, Wrapper, torch.compile], ids=["bare", "wrapped", "compiled"]
)
def test_attention_mlp_embedding_and_block_of_real_models(make, wrap) -> None:
    """The short names reach the right parameters of each architecture, bare, below a wrapper and compiled."""
    stack, *beginnings = MODELS[make]
    model = wrap(make())
    wrapper = "network." if isinstance(model, Wrapper) else ""
    names = [wrapper + name for name, _ in make().named_parameters()]
    for layer, beginning in zip(
        ["attn.1", "mlp.1", "wte", "block.1"], [*beginnings, f"{stack}.1."], strict=True
    ):
        expected = [name for name in names if name.startswith(wrapper + beginning)]
        assert expected
        assert list(parameters_of_layer(model, layer)) == expected
    assert [(found.path, len(found.blocks)) for found in anatomy_of(model).stacks] == [(wrapper + stack, 2)]


@pytest.mark.parametrize("make", [*MODELS, bert], ids=lambda make: make.__name__)
def test_components_hold_each_parameter_once(make) -> None:
    """Components partition the parameters, and attn, mlp, ln_1 and ln_2 make up the blocks."""
    model = make()
    grouped = components(model)
    named = [name for names in grouped.values() for name in names]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    in_block = {part for part, _, index in (label.partition(".") for label in grouped) if index.isdecimal()}
    assert in_block == {"attn", "mlp", "ln_1", "ln_2"}
    for label in grouped:
        assert set(grouped[label]) <= set(parameters_of_layer(model, label))


def test_components_of_gpt2_in_model_order() -> None:
    """A state table lists the parts of a transformer from bottom to top; the tied head is part of wte."""
    in_blocks = [f"{part}.{block}" for block in range(2) for part in ("ln_1", "attn", "ln_2", "mlp")]
    assert list(components(gpt2())) == ["wte", "wpe", *in_blocks, "ln_f"]


def test_components_of_bert_keep_its_norms_apart() -> None:
    """The norm inside BERT's attention module is ln_1, the one inside its output module ln_2."""
    grouped = components(bert())
    assert grouped["ln_1.0"][0] == "bert.encoder.layer.0.attention.output.LayerNorm.weight"
    assert grouped["ln_2.0"][0] == "bert.encoder.layer.0.output.LayerNorm.weight"
    assert len(grouped["attn.0"]) == 8
    assert len(grouped["mlp.0"]) == 4


def test_norms_around_the_mlp_are_ln_2() -> None:
    """Gemma 2 has two norms for each part: those of the attention are ln_1, those of the MLP ln_2."""
    norms = [name.split(".")[3] for name in parameters_of_layer(gemma2(), "ln_1.0")]
    assert norms == ["input_layernorm", "post_attention_layernorm"]
    norms = [name.split(".")[3] for name in parameters_of_layer(gemma2(), "ln_2.0")]
    assert norms == ["pre_feedforward_layernorm", "post_feedforward_layernorm"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Plain(), ["layer1", "layer2", "head"]),
        (ConvNet(), ["stem", "layers.0.conv1", "layers.0.conv2", "layers.1.conv1", "layers.1.conv2", "head"]),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["0", "1"]),
    ],
    ids=["plain", "blocks", "sequential"],
)
def test_components_of_other_models(model: nn.Module, expected: list[str]) -> None:
    """Without attention a component is a child of a block or of the model, with or without a wrapper."""
    assert list(components(model)) == expected
    assert list(components(Wrapper(model))) == expected


def test_tied_head_and_embedding_are_one_parameter() -> None:
    """lm_head and wte give the same parameter under its first name where they are tied."""
    model = gpt2()
    assert parameters_of_layer(model, "lm_head") == {"transformer.wte.weight": model.lm_head.weight}
    assert parameters_of_layer(model, "lm_head") == parameters_of_layer(model, "wte")


def test_a_block_by_the_name_the_model_gives_it() -> None:
    """`h.1` in GPT-2 and `layers.1` in Llama are `block.1`."""
    for model, layer in ((gpt2(), "h.1"), (llama(), "layers.1")):
        assert list(parameters_of_layer(model, layer)) == list(parameters_of_layer(model, "block.1"))


def test_blocks_are_found_when_only_some_are_wrapped() -> None:
    """A compiled block among plain ones does not hide the stack or change a name."""
    model = gpt2()
    expected = list(parameters_of_layer(model, "attn.1"))
    model.transformer.h[1] = torch.compile(model.transformer.h[1])
    assert list(parameters_of_layer(model, "attn.1")) == expected


def test_a_model_of_one_block_has_a_stack() -> None:
    """One transformer block in a list is a stack; a Sequential around a whole model is not."""
    assert [len(stack.blocks) for stack in anatomy_of(gpt2(1)).stacks] == [1]
    assert [stack.path for stack in anatomy_of(nn.Sequential(gpt2())).stacks] == ["0.transformer.h"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("attn.7", r"Layer index 7 out of range: the model has 4 layers, attn\.0 to attn\.3\."),
        ("block.4", r"Layer index 4 out of range: the model has 4 layers, block\.0 to block\.3\."),
        ("attn.-5", r"'attn\.-5' means none of the 4 blocks"),
        ("attn.two", r"Layer index 'two' in 'attn\.two' is not an integer: write attn\.0 to attn\.3\."),
        (
            "atn.2",
            r"Unknown component 'atn' in 'atn\.2': the blocks of GPT2LMHeadModel have .* Closest: 'attn'",
        ),
        ("lm_heat", r"Unknown layer 'lm_heat'.*Closest: 'lm_head'"),
        ("attn", r"Unknown layer 'attn'.*Closest: 'attn\.N'"),
    ],
)
def test_unknown_layers_say_what_there_is(layer: str, message: str) -> None:
    """A wrong layer name is an error that names the valid ones."""
    with pytest.raises(ValueError, match=message):
        parameters_of_layer(gpt2(4), layer)


def test_a_layer_must_be_a_string() -> None:
    """An index alone is not a layer."""
    with pytest.raises(TypeError, match=r"such as 'attn\.2', not 3 \(int\)"):
        parameters_of_layer(gpt2(), 3)


def test_rotary_models_have_no_wpe() -> None:
    """Asking for position embeddings that do not exist says why."""
    with pytest.raises(ValueError, match="LlamaForCausalLM has no 'wpe': its positions are rotary"):
        parameters_of_layer(llama(), "wpe")


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapper], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    ("mode", "own"),
    [
        ({"mode": "token_classifier", "num_token_classes": 3}, {"classifier_head": 2}),
        ({"mode": "sequence_scorer", "cls_token_id": 5}, {"sequence_head": 2, "cls_embedding": 1}),
        ({"tie_weights": False}, {"lm_head": 1}),
    ],
)
def test_a_gpt_has_the_head_of_its_mode(wrap, mode, own) -> None:
    """Under the name it has in the model; another mode's head is an error that lists what there is."""
    model = wrap(GPT({"vocab_size": 32, "n_embd": 8, "n_layer": 2, "n_head": 2, **mode}))
    outside = {label for label in components(model) if not label[-1].isdecimal()}

    assert outside == {"wte", "wpe", "ln_f", *own}
    assert {label: len(parameters_of_layer(model, label)) for label in own} == own
    for other in {"classifier_head", "sequence_head", "lm_head", "cls_embedding"} - set(own):
        with pytest.raises(ValueError, match=f"Unknown layer '{other}'.* has .*{min(own)}"):
            parameters_of_layer(model, other)


def test_a_model_without_blocks_says_so() -> None:
    """Block layers of a model without blocks are an error that points to names."""
    with pytest.raises(ValueError, match="Plain has no blocks.*Select by parameter name"):
        parameters_of_layer(Plain(), "attn.0")
    assert list(parameters_of_layer(Plain(), "head")) == ["head.weight", "head.bias"]


def test_two_stacks_are_ambiguous() -> None:
    """In a model with two stacks a block layer does not say which."""
    model = nn.ModuleDict({"student": gpt2(), "teacher": gpt2(3)})
    assert [len(stack.blocks) for stack in anatomy_of(model).stacks] == [2, 3]
    with pytest.raises(
        ValueError,
        match=r"2 stacks of blocks \('student.transformer.h' with 2, .* with 3\).*'student.attn.0'",
    ):
        parameters_of_layer(model, "attn.0")
    assert "teacher.transformer.h.2.attn" in components(model)


def test_expand_layers_writes_out_ranges() -> None:
    """A range includes both ends, `*` means all blocks, other names stay as they are."""
    assert expand_layers(gpt2(), "attn.0-1") == ["attn.0", "attn.1"]
    assert expand_layers(gpt2(3), "mlp.*") == ["mlp.0", "mlp.1", "mlp.2"]
    assert expand_layers(gpt2(3), "attn.-1") == ["attn.2"]
    with pytest.raises(ValueError, match=r"'attn\.3-1' runs backwards: write 'attn\.1-3'"):
        expand_layers(gpt2(), "attn.3-1")


@pytest.mark.parametrize(
    ("address", "blocks"),
    [
        ("block.-1", [7]),
        ("block.0-5", [0, 1, 2, 3, 4, 5]),
        ("block.:-4", [0, 1, 2, 3]),
        ("block.-2:", [6, 7]),
        ("block.0%-50%", [0, 1, 2, 3]),
        ("block.50%-100%", [4, 5, 6, 7]),
        ("block.33%", [0, 1]),
        ("block.1%", [0]),
        ("block.99%-100%", [7]),
        ("block.*", list(range(8))),
    ],
)
def test_blocks_by_an_address_for_any_depth(address: str, blocks: list[int]) -> None:
    """`a-b` has both ends, `a:b` is Python's slice, x % is rounded down and never empty."""
    assert expand_layers(gpt2(8), address) == [f"block.{block}" for block in blocks]


@pytest.mark.parametrize("address", ["block.0%", "block.5:2", "block.60%-40%", "block.0%-120%"])
def test_an_address_of_no_block_is_an_error(address: str) -> None:
    """It says which address, and how many blocks there are or what a share is."""
    with pytest.raises(ValueError, match=rf"'{address}' (means none of the 8 blocks|is no share)"):
        expand_layers(gpt2(8), address)


def test_roles_are_layers_too() -> None:
    """`head`, `embeddings`, `norms` and `biases` mean the same in every model."""
    model = gpt2()
    names = [name for name, _ in model.named_parameters()]

    assert list(parameters_of_layer(model, "head")) == ["transformer.wte.weight"]
    assert list(parameters_of_layer(model, "embeddings")) == [
        "transformer.wte.weight",
        "transformer.wpe.weight",
    ]
    assert list(parameters_of_layer(model, "norms")) == [name for name in names if ".ln_" in name]
    assert list(parameters_of_layer(model, "biases")) == [name for name in names if name[-5:] == ".bias"]


def test_a_stack_or_a_tower_by_its_name() -> None:
    """`teacher.block.-1` counts in that stack alone; blocks of stages count through all stages."""
    model = nn.ModuleDict({"student": gpt2(), "teacher": gpt2(3)})
    (last,) = expand_layers(model, "teacher.block.-1")

    assert last == "teacher.block.2"
    assert {name.rsplit(".h.", 1)[1][0] for name in parameters_of_layer(model, last)} == {"2"}
    assert {name.partition(".")[0] for name in parameters_of_layer(model, "student.attn.0")} == {"student"}
    resnet = ARCHITECTURES["resnet18"]()
    assert expand_layers(resnet, "block.-1") == ["block.7"]
    assert {name[:8] for name in parameters_of_layer(resnet, "block.7")} == {"layer4.1"}


def test_stacks_of_one_name_have_two_words() -> None:
    """Each address that the error of an ambiguous one recommends is taken, and selects one stack."""
    vision = nn.ModuleDict({"transformer": gpt2(), "global_transformer": gpt2(3)})
    model = nn.ModuleDict({"vision_model": vision, "language_model": llama()})
    with pytest.raises(ValueError, match=r"'vision\.block\.0' is ambiguous.*Say which: ") as refusal:
        parameters_of_layer(model, "vision.block.0")
    first, second = str(refusal.value).rpartition("Say which: ")[2].rstrip(".").split(", ")

    assert (first, second) == ("'vision.transformer.block.0'", "'vision.global_transformer.block.0'")
    for address, length in ((first, 2), (second, 3)):
        path = f"vision_model.{address.split('.')[1]}.transformer.h"
        assert {name.rsplit(".", 3)[0] for name in parameters_of_layer(model, address.strip("'"))} & {
            f"{path}.0.attn",
            f"{path}.0",
        }
        last = address.strip("'")[:-1] + f"{length - 1}"
        assert expand_layers(model, address.strip("'")[:-1] + "-1") == [last]


def test_a_block_has_what_the_verbs_take_for_it() -> None:
    """The downsampling between two stages is part of `block.N`, as it is of layer N of the verbs."""
    model = torchvision.models.swin_transformer.SwinTransformer(
        [2, 2], 8, [1, 2], [1, 2], [2, 2], num_classes=2
    )
    blocks = anatomy_of(model).blocks
    for index, block in enumerate(blocks):
        assert set(parameters_of_layer(model, f"block.{index}")) == set(block)
    assert any(name.startswith("features.2.") for block in blocks for name in block)
    in_blocks = [{name[:12] for name in parameters_of_layer(model, f"attn.{index}")} for index in range(3)]
    assert in_blocks == [{"features.1.0"}, {"features.3.0"}, {"features.3.1"}]


def test_all_of_a_part_that_some_blocks_have() -> None:
    """Of a hybrid, `attn.*` is the attention of the blocks with one."""

    def block(part: str) -> nn.Module:
        return nn.ModuleDict({part: nn.Linear(4, 4), "mlp": nn.Linear(4, 4)})

    model = nn.ModuleDict({"blocks": nn.ModuleList(map(block, ("mixer", "attn", "mixer", "attn")))})
    assert expand_layers(model, "attn.*") == ["attn.1", "attn.3"]
    assert expand_layers(model, "mlp.*") == ["mlp.0", "mlp.1", "mlp.2", "mlp.3"]


def test_the_head_of_a_tower() -> None:
    """`vision.head` is what reads that tower alone; where there is none, the error says so."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 32, "max_position_embeddings": 16}
    vision = sizes | {"image_size": 8, "patch_size": 4}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    )
    heads = {tower: list(parameters_of_layer(clip, f"{tower}.head")) for tower in ("vision", "text")}

    assert heads == {"vision": ["visual_projection.weight"], "text": ["text_projection.weight"]}
    tables = list(parameters_of_layer(clip, "text.embeddings"))
    assert tables == [f"text_model.embeddings.{each}_embedding.weight" for each in ("token", "position")]
    assert all(name.startswith("vision_model.") for name in parameters_of_layer(clip, "vision.norms"))
    model = nn.ModuleDict({"student": gpt2().transformer, "teacher": llama()})
    with pytest.raises(ValueError, match=r"'student\.head': the student of ModuleDict has no head "):
        parameters_of_layer(model, "student.head")


def test_a_component_comes_before_a_role() -> None:
    """What the model calls `head` is meant, whatever the anatomy takes for its head."""
    model = nn.Module()
    model.head, model.blocks = nn.Linear(2, 2), nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))

    assert list(parameters_of_layer(model, "head")) == ["head.weight", "head.bias"]


def test_a_negative_index_beyond_the_blocks() -> None:
    """It is named as it was written."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    with pytest.raises(ValueError, match=r"'block.-9' means none of the 3 blocks"):
        expand_layers(model, "block.-9")


def test_a_range_of_one_block_is_that_block() -> None:
    """Only one that runs backwards is refused."""
    assert block_indices("3-3", 8, "block.3-3") == [3]
    with pytest.raises(ValueError, match=r"'block.4-3' runs backwards: write 'block.3-4'"):
        block_indices("4-3", 8, "block.4-3")


@pytest.mark.parametrize(
    ("address", "counts"),
    [("attn.3", True), ("block.-1", True), ("block.:-4", True), ("mlp.0%-50%", True), ("attn.*", False)],
)
def test_which_addresses_go_by_the_order_of_blocks(address: str, counts: bool) -> None:
    """The first forward pass checks the order for these, and for no others."""
    assert counts_blocks(address) is counts
    assert not counts_blocks("head")
