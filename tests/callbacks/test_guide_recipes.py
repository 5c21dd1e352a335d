"""The recipes that lighter's guide documents, on a LighterModule, with the names that the guide uses."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer
from tests.lab import WIDTH, batches, recorder, trainer

lighter = pytest.importorskip("lighter")  # not on Python 3.13

NUM_EPOCHS = 12
BACKBONE = ["backbone.layer1", "backbone.layer2", "backbone.layer3"]
ENCODER = [f"encoder.layer{index}" for index in range(1, 6)]


class Network(nn.Module):
    """A backbone of three layers, an encoder of five, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.encoder = nn.Sequential(), nn.Sequential()
        for index in range(1, 4):
            self.backbone.add_module(f"layer{index}", nn.Linear(WIDTH, WIDTH))
        for index in range(1, 6):
            self.encoder.add_module(f"layer{index}", nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.encoder(torch.tanh(self.backbone(x)))))


class Model(lighter.LighterModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.training_step(batch, batch_idx)


def frozen_at_each_epoch(freezers: list[Freezer], optimizer: Any = None) -> tuple[list[list[str]], Model]:
    """Fit for twelve epochs; which layers were frozen in all steps of each."""
    network = Network()
    build = optimizer or (lambda network: torch.optim.Adam(network.parameters(), lr=0.001))
    module = Model(network, optimizer=build(network))
    seen = recorder(
        "pytorch_lightning",
        lambda trainer, m: (
            trainer.current_epoch,
            tuple(
                n[: -len(".weight")]
                for n, p in network.named_parameters()
                if not p.requires_grad and "weight" in n
            ),
        ),
    )
    fit = trainer("pytorch_lightning", callbacks=[*freezers, seen], max_epochs=NUM_EPOCHS)
    fit.fit(module, batches(), batches())
    assert len(seen.seen) == 4 * NUM_EPOCHS
    assert len(set(seen.seen)) == NUM_EPOCHS  # the same in all steps of an epoch
    return [list(layers) for _, layers in sorted(set(seen.seen))], module


@pytest.mark.parametrize("is_reversed", [False, True])
def test_gradual_unfreezing(is_reversed: bool) -> None:
    """The backbone until epoch 5, early encoder layers until epoch 10."""
    freezers = [
        Freezer(name_starts_with=["model.backbone"], until_epoch=5),
        Freezer(name_starts_with=["model.encoder.layer1", "model.encoder.layer2"], until_epoch=10),
    ]
    seen, _ = frozen_at_each_epoch(freezers[::-1] if is_reversed else freezers)

    early = ["encoder.layer1", "encoder.layer2"]
    assert seen == [[*BACKBONE, *early]] * 5 + [early] * 5 + [[]] * 2


@pytest.mark.parametrize("is_reversed", [False, True])
def test_the_practical_example(is_reversed: bool) -> None:
    """Head only, then the top of the backbone too, then everything."""
    freezers = [
        Freezer(name_starts_with=["model.backbone"], until_epoch=5),
        Freezer(name_starts_with=["model.backbone.layer1", "model.backbone.layer2"], until_epoch=10),
    ]
    seen, _ = frozen_at_each_epoch(freezers[::-1] if is_reversed else freezers)

    assert seen == [BACKBONE] * 5 + [BACKBONE[:2]] * 5 + [[]] * 2


def test_the_exclusion_example() -> None:
    """The encoder but for its fifth layer, until epoch 7."""
    freezer = Freezer(
        name_starts_with=["model.encoder"], except_name_starts_with=["model.encoder.layer5"], until_epoch=7
    )

    assert frozen_at_each_epoch([freezer])[0] == [ENCODER[:4]] * 7 + [[]] * 5


@pytest.mark.parametrize(("until_step", "epochs"), [(5000, 5), (8, 2)])
def test_both_limits_whichever_comes_first(until_step: int, epochs: int) -> None:
    """Until epoch 5, or a step: four steps make an epoch."""
    freezer = Freezer(name_starts_with=["model.backbone"], until_epoch=5, until_step=until_step)

    assert frozen_at_each_epoch([freezer])[0] == [BACKBONE] * epochs + [[]] * (NUM_EPOCHS - epochs)


def test_exact_names() -> None:
    """Two parameters of the head, by their full names."""
    freezer = Freezer(names=["model.head.weight", "model.head.bias"], until_step=8)

    assert frozen_at_each_epoch([freezer])[0] == [["head"]] * 2 + [[]] * 10


def test_discriminative_learning_rates() -> None:
    """Groups in the optimizer: each keeps its rate through the thaw, and the backbone trains after it."""

    def optimizer(network: nn.Module) -> torch.optim.Optimizer:
        named = list(network.named_parameters())
        return torch.optim.Adam(
            [
                {"params": [p for n, p in named if "backbone" in n], "lr": 0.0001},
                {"params": [p for n, p in named if "backbone" not in n], "lr": 0.001},
            ]
        )

    seen, module = frozen_at_each_epoch(
        [Freezer(name_starts_with=["model.backbone"], until_epoch=5)], optimizer
    )
    steps = [
        module.optimizer.state[p]["step"]
        for p in (module.network.backbone.layer1.weight, module.network.head.weight)
    ]

    assert seen == [BACKBONE] * 5 + [[]] * 7
    assert [group["lr"] for group in module.optimizer.param_groups] == [0.0001, 0.001]
    assert steps == [28, 48]
