"""What the user says about layers goes wherever an error advises it, and one tower may thaw alone."""

import copy
import pickle

import pytest
import pytorch_lightning as pl
import torch
import transformers
from torch import nn

from lighter_freezers import Freezer, GradualUnfreezing
from lighter_freezers.layers import (
    GradualUnfreezer,
    freeze_embeddings,
    freeze_first_n_layers,
    freeze_lm_head,
    get_layer_status,
    get_num_layers,
    print_layer_status,
    setup_lp_lora_style,
)
from lighter_freezers.layers.thaw_order import layers_of
from lighter_freezers.selection.anatomy.block_modules import parameters_of_blocks
from lighter_freezers.selection.select import ParameterSelector


class Odd(nn.Module):
    """Three different parts and nothing that repeats, so that no layers are found."""

    def __init__(self, order: tuple[str, ...] = ("a", "b")) -> None:
        super().__init__()
        self.stem, self.out, self.order = nn.Linear(4, 4), nn.Linear(4, 2), order
        self.a, self.b = nn.Bilinear(4, 4, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for name in self.order:
            x = self.a(x, x) if name == "a" else self.b(x)
        return self.out(x)


SAID = {"blocks": ["a", "b"], "head": ["out"], "embeddings": ["stem"]}


def frozen(model: nn.Module) -> set[str]:
    return {name.partition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}


def test_each_caller_of_an_error_takes_blocks() -> None:
    """Where layers are not found, all that asks for `blocks=` takes it."""
    for refused in (
        lambda model: GradualUnfreezer(model, 3),
        parameters_of_blocks,
        setup_lp_lora_style,
        lambda model: freeze_first_n_layers(model, 1),
    ):
        with pytest.raises(ValueError, match="blocks="):
            refused(Odd())
    assert list(parameters_of_blocks(Odd(), SAID["blocks"])) == ["0", "1"]
    assert get_num_layers(Odd(), SAID["blocks"]) == 2
    assert [layer["name"] for layer in get_layer_status(Odd(), SAID["blocks"])] == ["a", "b"]
    model = Odd()
    setup_lp_lora_style(model, 0.5, **SAID)
    assert frozen(model) == {"stem", "a"}
    model = Odd()
    GradualUnfreezer(model, 3, **SAID)
    assert frozen(model) == {"stem", "a", "b"}


def test_embeddings_and_head_that_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """The verbs of the two ends, and the table."""
    model = Odd()
    freeze_embeddings(model, **SAID)
    freeze_lm_head(model, **SAID)
    assert frozen(model) == {"stem", "out"}
    print_layer_status(model, **SAID)
    assert "Head:" in capsys.readouterr().out


def test_a_freezer_counts_the_blocks_that_are_said() -> None:
    """In its patterns; without a pattern that counts, saying them is an error."""
    selector = ParameterSelector.from_arguments(patterns=["layers:block.-1", "layers:head"], **SAID)
    assert {name.partition(".")[0] for name in selector.select(Odd())} == {"b", "out"}
    with pytest.raises(ValueError, match="blocks says what a pattern such as 'layers:block"):
        Freezer(patterns="*.bias", blocks=["a"])


def clip() -> nn.Module:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 32, "max_position_embeddings": 16}
    vision = sizes | {"image_size": 8, "patch_size": 4}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))


def test_gradual_unfreezing_of_one_tower() -> None:
    """Blocks and embeddings of the other tower are in no layer; a wrong name is an error."""
    layers = layers_of(clip(), {"tower": "vision"})
    names = [name for block in layers.blocks for name in block.names]

    assert len(layers.blocks) == 3
    assert all(name.startswith("vision_model.") for name in (*names, *layers.embeddings.names))
    with pytest.raises(ValueError, match="no tower 'audio'. Its towers: vision, text"):
        layers_of(clip(), {"tower": "audio"})
    assert "GradualUnfreezing" in repr(GradualUnfreezing(1, tower="vision"))


def test_both_ends_of_one_tower() -> None:
    """`freeze_embeddings(clip, tower="text")` leaves the images alone."""
    model = clip()
    freeze_embeddings(model, tower="text")
    freeze_lm_head(model, tower="vision")
    names = {name for name, p in model.named_parameters() if not p.requires_grad}

    assert {name.partition(".")[0] for name in names} == {"text_model", "visual_projection"}


def test_a_model_with_pending_checks_is_copied_and_pickled() -> None:
    """Before its first pass, also after a second verb; a copy is not checked."""
    model = Odd(("b", "a"))
    freeze_first_n_layers(model, 1, blocks=["a", "b"])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(torch.zeros(1, 4))
    with pytest.raises(RuntimeError, match="read a, b; ran b, a"):
        model(torch.zeros(1, 4))
    model = Odd()
    for number in (1, 2):
        freeze_first_n_layers(model, number, blocks=["a", "b"])
    model(torch.zeros(1, 4))
    assert not any(module._forward_pre_hooks for module in model.modules())


class Trained(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = Odd(("b", "a"))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return self.network(batch[0]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_fit_with_a_freezer_checks_the_order() -> None:
    """Blocks that a pattern counts and that run otherwise end the fit in its first step."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 4)), batch_size=2)
    freezer = Freezer(patterns="layers:block.0", blocks=["a", "b"])
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=2, callbacks=[freezer], accelerator="cpu", **options)

    with pytest.raises(RuntimeError, match=r"read network\.a, network\.b; ran network\.b, network\.a"):
        trainer.fit(Trained(), loader)
