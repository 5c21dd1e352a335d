"""The first forward pass checks the order of the blocks."""

import pytest
import torch
from torch import nn

from lighter_freezers.engine.effects.order_check import check_order
from lighter_freezers.layers import freeze_first_n_layers
from lighter_freezers.selection.anatomy import anatomy_of


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
