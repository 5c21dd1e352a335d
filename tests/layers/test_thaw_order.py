"""Which layers a model is cut into, on real architectures built small."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import GPT, apply_lora
from lighter_freezers.layers.thaw_order import cut_into_stages, layers_of
from lighter_freezers.selection.names import canonical_parameters
from tests.callbacks.block_net import BlockNet

SMALL = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(vocab_size=16, **SMALL))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_head=2, n_layer=3, n_positions=8))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=16, d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=2)
    )


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[2, 2], layer_type="basic")
    )


def swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=2, embed_dim=4, depths=[2, 2], num_heads=[1, 2], window_size=2)
    )


# model, blocks from the top, a name in the head, a name in the embeddings
MODELS: dict[str, tuple[Any, list[str], str, str]] = {
    "BERT": (bert, ["2", "1", "0"], "classifier.weight", "bert.embeddings.word_embeddings.weight"),
    "GPT-2, tied": (gpt2, ["2", "1", "0"], "transformer.wte.weight", "transformer.wpe.weight"),
    "T5": (
        t5,
        ["decoder.1", "decoder.0", "encoder.1", "encoder.0"],
        "decoder.final_layer_norm.weight",
        "",
    ),
    "ResNet": (
        resnet,
        ["1.1", "1.0", "0.1", "0.0"],
        "classifier.1.weight",
        "resnet.embedder.embedder.convolution.weight",
    ),
    "Swin": (
        swin,
        ["1.1", "1.0", "0.1", "0.0"],
        "classifier.weight",
        "swin.embeddings.patch_embeddings.projection.weight",
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_each_parameter_of_a_model_is_in_one_layer(model: str) -> None:
    """From the top down, and nothing is lost."""
    build, blocks, in_head, in_embeddings = MODELS[model]
    network = build()
    layers = layers_of(network)

    titles = [block.title.removeprefix("block ") for block in layers.blocks]
    assert [title.replace("stages.", "").replace("layers.", "") for title in titles] == blocks
    assert [block.depth for block in layers.blocks] == [1, 2, 3, 4][: len(blocks)]
    assert in_head in layers.head.names
    below = layers.embeddings.names if layers.embeddings else ("",)
    assert in_embeddings in below
    every = [*layers.head.names, *(name for block in layers.blocks for name in block.names), *below]
    assert sorted(filter(None, every)) == sorted(canonical_parameters(network))


def test_the_norm_of_an_encoder_thaws_with_its_top_block() -> None:
    """Else its gradient would have to come through the whole decoder from the first step on."""
    layers = {layer.title: layer.names for layer in layers_of(t5()).blocks}

    assert "encoder.final_layer_norm.weight" in layers["block encoder.1"]


def test_blocks_that_cannot_train_are_no_stages() -> None:
    """LoRA in the upper two blocks: the others stay with the user's flags."""
    gpt = GPT({"n_layer": 4, "n_embd": 4, "n_head": 1, "block_size": 4, "vocab_size": 5})
    network = apply_lora(gpt, {"r": 2, "target_modules": ["c_attn"], "layers_to_transform": [2, 3]})
    layers = layers_of(network)

    assert [(block.title, block.depth) for block in layers.blocks] == [("block 3", 0), ("block 2", 1)]
    assert not layers.can_begin_with_head
    assert layers.embeddings is None
    for parameter in network.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match="Nothing can train in any of the 4 blocks of GPT"):
        layers_of(network)


def test_stages_cover_all_layers_in_both_directions() -> None:
    """Counts of blocks become stages; a stage may be empty."""
    torch.manual_seed(0)
    layers = layers_of(BlockNet())

    def titles(direction: Any, counts: list[int], embeddings: int | None) -> list[list[str]]:
        stages = cut_into_stages(layers, direction, counts, embeddings)
        return [[layer.title.replace("block ", "") for layer in stage] for stage in stages]

    assert titles("top-down", [0, 1, 1, 4], 3) == [["head"], ["3"], [], ["2", "1", "0", "embeddings"]]
    assert titles("bottom-up", [1, 3, 4], 0) == [["head", "0", "embeddings"], ["1", "2"], ["3"]]
    assert titles("top-down", [4], None) == [["head", "3", "2", "1", "0"]]


def test_blocks_without_lora_are_no_blocks_frozen_by_hand() -> None:
    """Adapters on the upper blocks alone: PEFT has frozen the lower ones."""
    model = GPT({"n_layer": 3, "n_embd": 8, "n_head": 2, "vocab_size": 8, "block_size": 4})
    some = {"r": 2, "target_modules": ["c_attn"], "layers_to_transform": [2], "layers_pattern": "h"}
    layers = layers_of(apply_lora(model, some))

    assert [layer.title for layer in layers.blocks] == ["block 2"]
    assert layers.left_out == ()
