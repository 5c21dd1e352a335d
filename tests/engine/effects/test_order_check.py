"""The first forward pass checks the order of the blocks."""

from collections.abc import Iterator

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.data import DataLoader

from lighter_freezers import (
    GPT,
    Freezer,
    GPTModule,
    GradualUnfreezing,
    LoraPhases,
    LoraRankScheduler,
    apply_lora,
    plan,
    setup_lp_lora_style,
)
from lighter_freezers.engine.effects.order_check import check_order
from lighter_freezers.layers import freeze_first_n_layers
from lighter_freezers.selection.anatomy import anatomy_of
from tests.lab import trainer


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


class Net(nn.Module):
    """Runs its list in an order that no source tells."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order, self.stem, self.head = order, nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for index in self.order:
            x = self.blocks[index](x)
        return self.head(x)


def test_blocks_that_run_as_read_cost_nothing_later() -> None:
    """Each hook goes with the first call of its block."""
    model = Net([0, 1, 2])
    check_order(model, anatomy_of(model))
    model(torch.zeros(1, 4))

    assert not any(module._forward_pre_hooks for module in model.modules())


def test_another_order_is_an_error_that_shows_both() -> None:
    """What was read, what ran, and what to write."""
    model = Net([2, 1, 0])
    check_order(model, anatomy_of(model))

    with pytest.raises(RuntimeError, match=r"read blocks\.0, blocks\.1, blocks\.2; ran blocks\.2, blocks\.1"):
        model(torch.zeros(1, 4))


class Turns(nn.Module):
    """Two lists in an order that no source tells."""

    def __init__(self, order: list[tuple[str, int]]) -> None:
        super().__init__()
        self.order, self.stem, self.head = order, nn.Linear(4, 4), nn.Linear(4, 2)
        self.encoder = nn.ModuleList(block() for _ in range(2))
        self.decoder = nn.ModuleList(block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for name, index in self.order:
            x = getattr(self, name)[index](x)
        return self.head(x)


STRAIGHT = [("encoder", 0), ("encoder", 1), ("decoder", 0), ("decoder", 1)]


def test_stacks_that_run_in_turns_are_an_error() -> None:
    """Each stack runs in its own order, but not one behind the other."""
    model = Turns([STRAIGHT[0], STRAIGHT[2], STRAIGHT[1], STRAIGHT[3]])
    check_order(model, anatomy_of(model))

    with pytest.raises(RuntimeError, match=r"ran encoder\.0, decoder\.0, encoder\.1"):
        model(torch.zeros(1, 4))


def test_a_decoder_may_run_alone_first() -> None:
    """As when an autoencoder samples; hooks go with the first pass through the whole."""
    model = Turns(STRAIGHT)
    check_order(model, anatomy_of(model))
    model.decoder[0](torch.zeros(1, 4))
    model(torch.zeros(1, 4))

    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


class Backwards(nn.ModuleList):
    """A list that runs from its end, which the source of the GPT does not tell."""

    def __iter__(self) -> Iterator[nn.Module]:
        return reversed([*super().__iter__()])


def backwards(model: nn.Module) -> nn.Module:
    """The same GPT with its blocks from the last to the first."""
    model.transformer.h = Backwards(model.transformer.h)
    return model


@pytest.mark.parametrize(
    "callback",
    [
        LoraRankScheduler([{"step": 1, "rank_pattern": {"attn.0": 1}}]),
        LoraPhases("early->late", 1),
    ],
    ids=["schedule", "phases"],
)
def test_ranks_and_phases_check_the_order_too(callback: Callback) -> None:
    """Both name layers by number."""
    config = {"n_layer": 4, "n_embd": 8, "n_head": 2, "block_size": 8, "vocab_size": 16}
    network = apply_lora(backwards(GPT(config)), {"r": 2, "target_modules": ["c_attn", "c_fc"]})
    module = GPTModule(network, optimizer=torch.optim.SGD(network.parameters(), lr=0.01))
    row = {key: torch.zeros(8, dtype=torch.long) for key in ("input_ids", "targets")}
    quiet = trainer("pytorch_lightning", callbacks=[callback], max_steps=2, limit_val_batches=0)

    with pytest.raises(RuntimeError, match="The blocks run in another order than read"):
        quiet.fit(module, DataLoader([row, row]), DataLoader([row]))


def test_lora_in_upper_layers_checks_the_order_too() -> None:
    """It would freeze the lower ones."""
    config = {"n_layer": 4, "n_embd": 8, "n_head": 2, "block_size": 8, "vocab_size": 16}
    model = backwards(GPT(config))
    setup_lp_lora_style(model, lora={"r": 2, "target_modules": ["c_attn"]})

    with pytest.raises(RuntimeError, match="The blocks run in another order than read"):
        model(torch.zeros(1, 8, dtype=torch.long))


class WithExample(pl.LightningModule):
    """Its example tells that the last block runs first."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.example_input_array = Net([2, 1, 0]), torch.zeros(1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fit_goes_by_the_example_of_its_module() -> None:
    """The block that runs last thaws first, and the random state is as without it."""
    module = WithExample()
    freezer = Freezer(patterns=["layers:block.0"])
    state = torch.get_rng_state()
    assert anatomy_of(module).stacks[0].block_paths == tuple(f"network.blocks.{i}" for i in (2, 1, 0))
    assert torch.equal(state, torch.get_rng_state())
    trainer("pytorch_lightning", callbacks=[freezer]).fit(module, DataLoader(torch.ones(4, 4)))

    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    assert {name.rpartition(".")[0] for name in frozen} == {"network.blocks.2.0", "network.blocks.2.2"}


def test_an_example_that_does_not_run_leaves_the_source() -> None:
    """As one of the wrong width, or one that a module keeps for another purpose."""
    module = WithExample()
    module.example_input_array = torch.zeros(1, 7)

    assert anatomy_of(module).stacks[0].block_paths == tuple(f"network.blocks.{i}" for i in range(3))


def test_a_plan_says_that_the_order_is_another() -> None:
    """Its first real step runs the blocks; torch is not left in the mode that counts them."""
    module = WithExample()
    module.example_input_array = None
    quiet = trainer("pytorch_lightning", callbacks=[GradualUnfreezing(1)])
    with pytest.raises(RuntimeError, match="The blocks run in another order than read"):
        plan(quiet, module, DataLoader(torch.ones(4, 4)))
    assert _get_current_dispatch_mode() is None


def test_an_example_tells_the_order_and_leaves_no_trace() -> None:
    """Modes, random state and hooks are as before."""
    model = Net([2, 1, 0]).train()
    state = torch.get_rng_state()
    anatomy = anatomy_of(model, example=torch.zeros(1, 4))

    assert anatomy.stacks[0].block_paths == ("blocks.2", "blocks.1", "blocks.0")
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("wrapper", ["network", "model"])
def test_what_is_said_holds_behind_a_wrapper(wrapper: str) -> None:
    """A Trainer's module has the network behind `network.` or `model.`; names go with and without it."""
    bare, around = Net([0, 1, 2]), nn.Module()
    setattr(around, wrapper, Net([0, 1, 2]))
    for prefix in ("", "network.", "model."):
        said = {"blocks": [f"{prefix}blocks.*"], "head": [f"{prefix}stem"], "embeddings": [f"{prefix}head"]}
        for model, path in ((bare, ""), (around, f"{wrapper}.")):
            anatomy = anatomy_of(model, **said)
            assert anatomy.stacks[0].block_paths == tuple(f"{path}blocks.{i}" for i in range(3))
            assert anatomy.heads == (f"{path}stem.weight", f"{path}stem.bias")
            assert anatomy.embeddings == (f"{path}head.weight", f"{path}head.bias")


def test_a_tied_head_may_be_said() -> None:
    """Under the name of the tied weight: it stays with the embedding, and is the head's."""
    model = nn.Module()
    model.embed, model.blocks = nn.Embedding(4, 4), nn.ModuleList(block() for _ in range(3))
    model.head = nn.Linear(4, 4, bias=False)
    model.head.weight = model.embed.weight
    anatomy = anatomy_of(model, blocks=["blocks.*"], head=["head"])

    assert (anatomy.embeddings, anatomy.tied) == (("embed.weight",), ("embed.weight",))


def test_what_the_user_says_wins() -> None:
    """Blocks in that order, head and embeddings by path; a verb takes them too."""
    model = Net([2, 1, 0])
    said = {"blocks": ["blocks.2", "blocks.1", "blocks.0"], "head": ["stem"], "embeddings": ["head"]}
    anatomy = anatomy_of(model, **said)

    assert anatomy.stacks[0].block_paths == ("blocks.2", "blocks.1", "blocks.0")
    assert (anatomy.heads, anatomy.embeddings) == (
        ("stem.weight", "stem.bias"),
        ("head.weight", "head.bias"),
    )
    freeze_first_n_layers(model, 1, blocks=said["blocks"])
    assert [name for name, p in model.named_parameters() if not p.requires_grad][0] == "blocks.2.0.weight"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"blocks": ["block.*"]}, r"blocks: 'block\.\*' is no module .*Closest: "),
        ({"blocks": ["blocks", "blocks.0"]}, "'blocks.0' is inside 'blocks'"),
        ({"head": ["haed"]}, "head: 'haed' is no module or parameter of the model. Closest: head"),
    ],
)
def test_what_is_said_is_checked(said: dict[str, list[str]], message: str) -> None:
    """A path that does not exist is an error with the closest ones."""
    with pytest.raises(ValueError, match=message):
        anatomy_of(Net([0]), **said)  # type: ignore[arg-type]
