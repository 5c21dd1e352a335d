"""Two towers side by side, and thawing what PEFT trains and nothing else."""

import logging

import peft
import pytest
import torch
import transformers
from torch import nn

from lighter_freezers.layers import freeze_except_last_n, freeze_first_n_layers, unfreeze_model
from lighter_freezers.layers.layer_addresses import describe_layers
from lighter_freezers.layers.thaw_order import layers_of
from tests.zoo.transformers_models import MODELS


@pytest.fixture
def clip() -> nn.Module:
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    return MODELS["clip"][0]()


def training(model: nn.Module, part: str) -> set[str]:
    return {
        ".".join(name.split(".")[:4])
        for name, p in model.named_parameters()
        if p.requires_grad and part in name
    }


def test_a_verb_takes_as_many_layers_of_each_tower(clip, caplog) -> None:
    """And says so."""
    with caplog.at_level(logging.INFO, "lighter_freezers"):
        freeze_first_n_layers(clip, 2)

    assert training(clip, ".layers.") == {
        "vision_model.encoder.layers.2",
        "text_model.encoder.layers.2",
    }
    assert "The first 2 of 3 layers of each tower (vision, text)" in caplog.text


def test_a_verb_takes_one_tower_by_its_name(clip) -> None:
    """The other is left alone; a name that is none is an error that lists them."""
    freeze_first_n_layers(clip, 3, tower="vision")

    assert {name.partition(".")[0] for name in training(clip, ".layers.")} == {"text_model"}
    with pytest.raises(ValueError, match="no tower 'visoin'. Its towers: vision, text"):
        freeze_except_last_n(clip, 1, tower="visoin")


def test_towers_thaw_side_by_side(clip) -> None:
    """Their top blocks are one layer to thaw, then those below."""
    layers = layers_of(clip)

    assert [layer.title for layer in layers.blocks] == [
        f"block vision_model.{index} + text_model.{index}" for index in (2, 1, 0)
    ]


def test_the_addresses_of_towers_are_shown(clip) -> None:
    """As a rule would write them."""
    shown = describe_layers(clip)

    assert "6 blocks, towers vision, text" in shown
    assert "vision.block.2 " in shown
    assert "text.block.0 " in shown


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 8, 1, groups=2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)
        self.layers, self.classifier = nn.ModuleList(Block() for _ in range(2)), nn.Linear(8, 2)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd")
@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules=["q"], modules_to_save=["classifier"]),
        peft.LoraConfig(r=2, target_modules=["conv"]),
        peft.LoraConfig(r=2, target_modules=["q"], trainable_token_indices={"table": [1, 2]}),
        peft.IA3Config(target_modules=["q"], feedforward_modules=[]),
        peft.LoHaConfig(r=2, target_modules=["q"]),
        peft.AdaLoraConfig(init_r=4, target_r=2, target_modules=["q"], total_step=10),
    ],
    ids=["modules_to_save", "grouped", "tokens", "ia3", "loha", "adalora"],
)
def test_what_peft_keeps_frozen_stays_so(config: peft.PeftConfig) -> None:
    """Base weights, originals and whole tables, below adapters of any kind and name."""
    model = peft.get_peft_model(Net(), config, adapter_name="task")
    unfreeze_model(model)
    kept = [name for name, _ in model.named_parameters() if "base_layer" in name or "original_module" in name]

    assert kept
    assert not [name for name, p in model.named_parameters() if name in kept and p.requires_grad]
