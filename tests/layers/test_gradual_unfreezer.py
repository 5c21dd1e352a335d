"""The head first, half of the layers halfway, all at the end: for every model, and in a loop that trains."""

import logging

import peft
import pytest
import torch
from torch import nn

from lighter_freezers.engine import ledger
from lighter_freezers.layers import (
    GradualUnfreezer,
    freeze_first_n_layers,
    freeze_last_n_layers,
    freeze_model,
    unfreeze_model,
)
from tests.architectures import ARCHITECTURES


class Chain(nn.Module):
    """Any number of layers of four elements between an embedding, a norm and a head."""

    def __init__(self, num_layers: int, is_tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 2)
        self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(num_layers))
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 3, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight


def training(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def layers(*indices: int) -> set[str]:
    return {f"layers.{index}.weight" for index in indices}


NORM = {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("num_layers", range(1, 41))
def test_every_number_of_layers_and_epochs(num_layers: int) -> None:
    """From the top, one after the other, the head alone first, all at last, and only the embeddings never."""
    model = Chain(num_layers)
    for total_epochs in range(1, 41):
        unfreezer = GradualUnfreezer(model, total_epochs, verbose=False)
        halfway, last = (total_epochs - 1) // 2, total_epochs - 1
        numbers = {}
        for epoch in sorted({0, halfway, halfway + 1, last - 1, last} & set(range(total_epochs))):
            unfreezer.step(epoch)
            current = unfreezer.get_current_trainable_layers()
            assert current == list(range(num_layers - len(current), num_layers))
            assert training(model) == {"head.weight"} | layers(*current) | (NORM if current else set())
            numbers[epoch] = len(current)
        assert list(numbers.values()) == sorted(numbers.values())
        assert numbers[last] == num_layers
        assert total_epochs == 1 or numbers[0] == 0
        assert total_epochs < 3 or numbers[halfway] == num_layers // 2


def test_the_example_of_the_document() -> None:
    """Epoch 1: the head. Epoch 5 of 10: half of the layers. Epoch 10: all of them."""
    model = Chain(12)
    unfreezer = GradualUnfreezer(model, total_epochs=10)
    seen = {}
    for epoch in range(10):
        unfreezer.step(epoch)
        seen[epoch + 1] = unfreezer.get_current_trainable_layers()

    assert seen[1] == []
    assert seen[5] == [6, 7, 8, 9, 10, 11]
    assert seen[10] == list(range(12))


def test_it_is_the_first_epoch_from_the_beginning() -> None:
    """Before the first call of `step` the head alone trains."""
    model = Chain(4)
    GradualUnfreezer(model, 4)

    assert training(model) == {"head.weight"}


def test_what_is_returned() -> None:
    """The elements that train from now on: two layers with the norm, then two layers."""
    unfreezer = GradualUnfreezer(Chain(4), 3)

    assert [unfreezer.step(epoch) for epoch in (0, 1, 1, 2)] == [0, 12, 0, 8]


def test_the_state_depends_on_the_epoch_alone() -> None:
    """A run that goes on in epoch 2 is where one from the beginning is; a step back freezes again."""
    model, other = Chain(6), Chain(6)
    unfreezer = GradualUnfreezer(model, 4)
    for epoch in (0, 1, 2):
        unfreezer.step(epoch)
    GradualUnfreezer(other, 4).step(2)
    assert training(model) == training(other)
    unfreezer.step(0)

    assert training(model) == {"head.weight"}


def test_embeddings_at_an_epoch() -> None:
    """From the epoch on that is asked for, counted from 0."""
    model = Chain(4)
    unfreezer = GradualUnfreezer(model, 6, unfreeze_embeddings_at=3)
    seen = []
    for epoch in range(6):
        unfreezer.step(epoch)
        seen.append("embedding.weight" in training(model))

    assert seen == [False, False, False, True, True, True]


def test_embeddings_that_are_not_frozen() -> None:
    """They train all the time."""
    model = Chain(4)
    unfreezer = GradualUnfreezer(model, 4, freeze_embeddings=False)
    for epoch in range(4):
        unfreezer.step(epoch)
        assert "embedding.weight" in training(model)
    assert training(model) == {name for name, _ in model.named_parameters()}


def test_a_tied_head_trains_from_the_beginning() -> None:
    """It is the embedding's weight; the positions beside it stay frozen."""
    model = ARCHITECTURES["gpt2"]()
    unfreezer = GradualUnfreezer(model, 4)
    assert training(model) == {"transformer.wte.weight"}
    unfreezer.step(3)

    assert {n for n, _ in model.named_parameters()} - training(model) == {"transformer.wpe.weight"}


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("mlp", "albert", "shared")])
@pytest.mark.parametrize("total_epochs", [1, 2, 5])
def test_all_layers_of_every_architecture_at_the_end(name: str, total_epochs: int) -> None:
    """Only embeddings stay; something trains in every epoch, so that there is a gradient."""
    model = ARCHITECTURES[name]()
    could = training(model)
    unfreezer = GradualUnfreezer(model, total_epochs, freeze_embeddings=False, verbose=False)
    for epoch in range(total_epochs):
        unfreezer.step(epoch)
        assert training(model)
    assert training(model) == could


def test_the_norm_of_an_encoder_waits_for_the_encoder() -> None:
    """Else the backward pass would go through the whole decoder from the first epoch on."""
    model = ARCHITECTURES["t5"]()
    unfreezer = GradualUnfreezer(model, 5)  # 0, 1, 2, 3, 5 of five layers
    norm = "encoder.final_layer_norm.weight"
    seen = []
    for epoch in range(5):
        unfreezer.step(epoch)
        seen.append((len(unfreezer.get_current_trainable_layers()), norm in training(model)))

    assert seen == [(0, False), (1, False), (2, False), (3, False), (5, True)]


def test_a_model_without_a_head_begins_with_its_last_layer() -> None:
    """Something has to train."""
    model = ARCHITECTURES["mlp"]()
    unfreezer = GradualUnfreezer(model, 3)

    assert unfreezer.get_current_trainable_layers() == [2]
    assert training(model) == {"5.weight", "5.bias"}


def test_a_temperature_trains_with_the_last_of_the_layers() -> None:
    """What is neither head nor layer nor embedding thaws when all layers train."""
    model = ARCHITECTURES["torch"]()
    unfreezer = GradualUnfreezer(model, 3)
    unfreezer.step(1)
    assert "temperature" not in training(model)
    unfreezer.step(2)

    assert "temperature" in training(model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_the_base_of_a_model_with_lora_stays_frozen() -> None:
    """Only the factors thaw, beginning with the last layer; the head has none."""
    model = peft.get_peft_model(ARCHITECTURES["llama"](), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    factors = training(model)
    unfreezer = GradualUnfreezer(model, 3)
    assert training(model) == {name for name in factors if ".layers.2." in name}
    unfreezer.step(2)

    assert training(model) == factors


def test_layers_frozen_by_hand_stay_so() -> None:
    """The schedule is that of the layers that could train when it was made."""
    model = Chain(6)
    freeze_first_n_layers(model, 2)
    unfreezer = GradualUnfreezer(model, 3)
    seen = []
    for epoch in range(3):
        unfreezer.step(epoch)
        seen.append(unfreezer.get_current_trainable_layers())

    assert seen == [[], [4, 5], [2, 3, 4, 5]]


def test_the_last_layers_can_be_the_frozen_ones() -> None:
    """The schedule then begins below them."""
    model = Chain(6)
    freeze_last_n_layers(model, 2)
    unfreezer = GradualUnfreezer(model, 3)
    unfreezer.step(1)

    assert unfreezer.get_current_trainable_layers() == [2, 3]


def test_a_second_unfreezer_takes_over_from_the_first() -> None:
    """What the first left frozen can train; what was frozen by hand since cannot."""
    model = Chain(4)
    GradualUnfreezer(model, 4)
    GradualUnfreezer(model, 4).step(3)
    assert layers(0, 1, 2, 3) <= training(model)
    GradualUnfreezer(model, 4)
    freeze_first_n_layers(model, 1)
    GradualUnfreezer(model, 4).step(3)

    assert training(model) & layers(0, 1, 2, 3) == layers(1, 2, 3)


def test_it_can_be_ended_at_any_time() -> None:
    """Nothing is held after it: one call lets everything train."""
    model = Chain(4)
    GradualUnfreezer(model, 4)
    unfreeze_model(model)

    assert training(model) == {name for name, _ in model.named_parameters()}


def test_beside_a_freezer() -> None:
    """A held layer stays frozen when its epoch comes, and trains once it is released."""
    model = Chain(2)
    hold = ledger.Hold(model.layers[1].parameters(), "Freezer")
    hold.take()
    unfreezer = GradualUnfreezer(model, 3)
    unfreezer.step(2)
    assert training(model) == {"head.weight", *NORM, *layers(0)}
    hold.let_go()
    assert layers(1) <= training(model)
    hold.take()
    unfreezer.step(0)
    hold.let_go()

    assert training(model) == {"head.weight"}


@pytest.mark.parametrize("is_built_before", [True, False], ids=["before", "after"])
def test_an_optimizer_made_before_or_after(is_built_before: bool) -> None:
    """Each layer moves from the epoch on in which it trains, at the same learning rate."""
    torch.manual_seed(0)
    model = Chain(4)
    before = torch.optim.SGD(model.parameters(), lr=0.1)
    unfreezer = GradualUnfreezer(model, 3)
    optimizer = before
    if not is_built_before:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for epoch in range(3):
        unfreezer.step(epoch, optimizer, [scheduler])
        old = {name: parameter.clone() for name, parameter in model.named_parameters()}
        x = model.embedding(torch.arange(3))
        for layer in model.layers:
            x = torch.tanh(layer(x))
        model.head(model.norm(x)).square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        assert gradients.keys() == training(model)
        optimizer.step()
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            moved = 0.1 * 0.5**epoch * gradients.get(name, torch.zeros(()))
            torch.testing.assert_close(parameter, old[name] - moved)
        scheduler.step()


def test_what_it_says(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line where something changes; none when it is to be quiet."""
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    with caplog.at_level(logging.INFO, "lighter_freezers"):
        unfreezer = GradualUnfreezer(Chain(4), 3)
        for epoch in (0, 1, 1, 2):
            unfreezer.step(epoch)
        GradualUnfreezer(Chain(4), 3, verbose=False).step(2)

    assert caplog.messages == [
        "GradualUnfreezer, epoch 1 of 3: only the head trains, 6 parameters.",
        "GradualUnfreezer, epoch 2 of 3: the head and 2 of 4 layers train, 18 parameters.",
        "GradualUnfreezer, epoch 3 of 3: the head and 4 of 4 layers train, 26 parameters.",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"total_epochs": 0}, ValueError, "total_epochs must be at least 1. Got 0"),
        ({"total_epochs": "3"}, TypeError, "total_epochs must be a whole number"),
        (
            {"total_epochs": 3, "unfreeze_embeddings_at": -1},
            ValueError,
            "unfreeze_embeddings_at counts from 0",
        ),
        ({"total_epochs": 3, "verbose": "no"}, TypeError, "verbose must be true or false"),
        (
            {"total_epochs": 3, "unfreeze_embeddings_at": 1, "freeze_embeddings": False},
            ValueError,
            "but freeze_embeddings is False",
        ),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    """They are refused before anything is frozen."""
    model = Chain(2)
    with pytest.raises(error, match=message):
        GradualUnfreezer(model, **arguments)  # type: ignore[arg-type]
    assert len(training(model)) == len(list(model.parameters()))


def test_models_that_cannot_thaw() -> None:
    """No layers at all, or none that trains."""
    with pytest.raises(ValueError, match="GradualUnfreezer needs layers, but Linear has no blocks"):
        GradualUnfreezer(nn.Linear(2, 2), 3)
    model = Chain(2)
    freeze_model(model)
    with pytest.raises(ValueError, match=r"No layer of the model trains.*unfreeze_model\(model\) first"):
        GradualUnfreezer(model, 3)
    with pytest.raises(ValueError, match="epoch counts from 0. Got -1"):
        GradualUnfreezer(Chain(2), 3).step(-1)
    with pytest.raises(TypeError, match="epoch must be a whole number"):
        GradualUnfreezer(Chain(2), 3).step(None)  # type: ignore[arg-type]
