"""Of several optimizers, what thaws and none knows joins that of its neighbours, or the run is refused."""

import logging
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations
from tests.lab import NAMESPACES, trainer

OPTIMIZERS = {"Adam": torch.optim.Adam, "SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}


def trainable(*parts: nn.Module) -> list[nn.Parameter]:
    return [p for part in parts for p in part.parameters() if p.requires_grad]


def gan(namespace: str, optimizer: str = "SGD") -> Any:
    """A discriminator, and a generator of encoder and decoder, each with an optimizer of what trains."""

    class Gan(import_module(namespace).LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            parts = {"disc": nn.Linear(4, 1), "encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)}
            self.network = nn.ModuleDict(parts)

        def training_step(self, batch: Any, index: int) -> None:
            made = self.network["decoder"](self.network["encoder"](batch))
            for optimizer, sign in zip(self.optimizers(), (-1, 1), strict=True):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                made = self.network["decoder"](self.network["encoder"](batch))
                self.manual_backward(sign * self.network["disc"](made).mean())
                optimizer.step()
                self.untoggle_optimizer(optimizer)

        def configure_optimizers(self) -> Any:
            make = OPTIMIZERS[optimizer]
            disc, *generator = self.network.values()
            return [make(trainable(disc), lr=0.1), make(trainable(*generator), lr=0.1)]

    return Gan()


def fit(namespace: str, module: Any, *callbacks: Any, data: Any = None) -> bool:
    """Whether the encoder moved."""
    before = [p.detach().clone() for p in module.network["encoder"].parameters()]
    loader = DataLoader(torch.randn(16, 4) if data is None else data, batch_size=4)
    trainer(namespace, callbacks=list(callbacks), max_epochs=2).fit(module, loader)
    after = module.network["encoder"].parameters()
    return any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_two_optimizers_could_take_is_refused(namespace: str, optimizer: str) -> None:
    """A generator's encoder beside its decoder and the discriminator: all are children of one module."""
    module = gan(namespace, optimizer)
    with pytest.raises(
        ValueError, match=r"encoder.weight.* will thaw.*0 \(.*disc.*1 \(.*decoder.*optimizer: 1"
    ):
        fit(namespace, module, Freezer(name_starts_with="encoder.", until_epoch=1))
    assert module.global_step == 0


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("asked", [1, "decoder"])
def test_the_optimizer_asked_for_takes_it(namespace: str, asked: Any, caplog: Any) -> None:
    """By number, or by a module it trains; the log says which took what."""
    caplog.set_level(logging.INFO, "lighter_freezers")
    module = gan(namespace)
    assert fit(namespace, module, Freezer(name_starts_with="encoder.", until_epoch=1, optimizer=asked))
    groups = module.optimizers()[1].param_groups
    assert [len(group["params"]) for group in groups] == [2, 2]
    assert "optimizer 1 (SGD) takes encoder (2 parameters)" in caplog.text


@pytest.mark.parametrize(
    ("asked", "said"), [("SGD", "stands for 2"), (2, "stands for none"), ("decodr", "stands for none")]
)
def test_an_optimizer_that_is_not_one_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(NAMESPACES[0], gan(NAMESPACES[0]), Freezer(names="encoder.bias", until_step=1, optimizer=asked))


def test_two_rules_may_not_ask_for_two_optimizers() -> None:
    freezers = [Freezer(name_starts_with="encoder.", until_step=1 + i, optimizer=i) for i in range(2)]
    with pytest.raises(ValueError, match="gives network.encoder.weight to optimizer=1, and another"):
        fit(NAMESPACES[0], gan(NAMESPACES[0]), *freezers)


def test_operations_are_refused_alike() -> None:
    """They have no argument for it: the module's optimizer has to know the layer."""
    module = gan(NAMESPACES[0])
    module.network["encoder"].requires_grad_(False)
    operation = {"name": "unfreeze_layer", "value": "encoder", "trigger_loss": 9.0}
    with pytest.raises(ValueError, match="encoder.* will thaw.*configure_optimizers"):
        fit(NAMESPACES[0], module, LayerOperations([operation], monitor="training_loss"))


def two_kinds(namespace: str, kind: str) -> Any:
    """Blocks of matrices and vectors below a sparse embedding, with an optimizer for each kind."""

    class Net(import_module(namespace).LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            self.wte = nn.Embedding(5, 4, sparse=kind == "SparseAdam")
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 1)

        def training_step(self, batch: Any, index: int) -> None:
            x = self.wte(batch)
            for block in self.blocks:
                x = torch.tanh(block(x))
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(self.head(x).square().mean())
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self) -> Any:
            if kind == "SparseAdam":
                blocks = torch.optim.Adam(trainable(self.blocks, self.head))
                return [torch.optim.SparseAdam(trainable(self.wte)), blocks]
            hidden = trainable(self.blocks)
            rest = [p for p in hidden if p.ndim < 2] + trainable(self.wte, self.head)
            return [torch.optim.Muon([p for p in hidden if p.ndim == 2]), torch.optim.AdamW(rest)]

    return Net()


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize(
    ("kind", "callback"),
    [("SparseAdam", "Freezer"), ("SparseAdam", "GradualUnfreezing"), ("Muon", "Freezer")],
)
def test_an_optimizer_gets_only_what_it_accepts(namespace: str, kind: str, callback: str) -> None:
    """Muon gets matrices and no biases, like those of the other blocks; SparseAdam no dense weight."""
    module = two_kinds(namespace, kind)
    freezer = (
        Freezer(name_starts_with=["blocks.0.", "blocks.1."], until_step=2)
        if callback == "Freezer"
        else GradualUnfreezing(every_n_steps=2, unfreeze_embeddings=0, optimizer=1)
    )
    before = module.blocks[0].weight.detach().clone()
    loader = DataLoader(torch.randint(5, (32,)), batch_size=4)
    trainer(namespace, callbacks=[freezer], max_epochs=3).fit(module, loader)

    special, other = ([p for g in o.param_groups for p in g["params"]] for o in module.optimizers())
    if callback == "Freezer" and kind == "Muon":
        assert {id(p) for p in special} == {id(block.weight) for block in module.blocks}
    assert all(p.ndim == 2 for p in special)
    assert kind == "Muon" or [id(p) for p in special] == [id(module.wte.weight)]
    assert len(special) + len(other) == 9
    assert not torch.equal(before, module.blocks[0].weight)


def test_what_no_optimizer_accepts_is_refused() -> None:
    """A run with Muon alone, whose biases would thaw."""
    module = two_kinds(NAMESPACES[0], "Muon")

    def only_muon() -> Any:
        return torch.optim.Muon([p for p in module.parameters() if p.requires_grad and p.ndim == 2])

    module.configure_optimizers = only_muon
    loader = DataLoader(torch.randint(5, (32,)), batch_size=4)
    with pytest.raises(
        ValueError, match=r"blocks.0.bias \(of shape \(4,\)\).*no optimizer.*accepts it: 0 \(Muon"
    ):
        trainer(NAMESPACES[0], callbacks=[Freezer(name_starts_with="blocks.0", until_step=2)]).fit(
            module, loader
        )
