"""The engine is set up once, after the callback that asks for it first, in every stage; late modules too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer, GradientNormMonitor, LayerOperations
from tests.lab import (
    NAMESPACES,
    TinyNet,
    batches,
    frozen_layers,
    recorder,
    regression,
    resuming,
    trainer,
)

LONE = NAMESPACES[0]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_validation_before_the_fit_sets_each_callback_up_once(namespace: str, tmp_path: Any) -> None:
    """The monitor stands first and has nothing to do there; the engine still gets its place."""
    stages = []

    class Noted(Freezer):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            stages.append(stage)
            super().setup(trainer, pl_module, stage)

    first = GradientNormMonitor(dirpath=str(tmp_path))
    run = trainer(namespace, callbacks=[first, Noted(name_starts_with="layer1.", until_step=1)])
    run.validate(regression(namespace), batches(), verbose=False)

    assert stages == ["validate"]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_other_stages_before_and_after_a_fit_change_nothing(namespace: str) -> None:
    """`validate`, `test` and `predict`, with the same callbacks in the same and in a second Trainer."""

    def all_stages(run: Any, module: Any) -> None:
        before = [(p.requires_grad, p.detach().clone()) for p in module.parameters()]
        run.validate(module, batches(), verbose=False)
        run.test(module, batches(), verbose=False)
        run.predict(module, batches())
        after = [(p.requires_grad, p.detach()) for p in module.parameters()]
        assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before, after, strict=True))

    def fitted(with_stages: bool) -> tuple[Any, list[list[str]]]:
        module, seen = regression(namespace), recorder(namespace, lambda _, m: frozen_layers(m))
        type(module).test_step = lambda self, batch, batch_idx: None
        type(module).predict_step = lambda self, batch, batch_idx: self.network(batch[0])
        ours = [Freezer(name_starts_with="layer1.", until_step=2), operations()]
        run = trainer(namespace, callbacks=[*ours, seen])
        if with_stages:
            all_stages(run, module)
            all_stages(trainer(namespace, callbacks=ours), module)
        run.fit(module, batches(), batches())
        if with_stages:
            all_stages(run, module)
        return module, seen.seen

    (plain, frozen), (module, seen) = fitted(with_stages=False), fitted(with_stages=True)
    assert frozen == seen == [["layer1"], ["layer1", "layer2"], ["layer2"], ["layer2"]]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))


def operations() -> LayerOperations:
    return LayerOperations([{"name": "freeze_layer", "value": "layer2", "max_wait_iters": 1}])


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_callbacks_serve_several_trainers(namespace: str) -> None:
    """One after another, each with a model of its own, as if they were new."""
    ours = [Freezer(name_starts_with="layer1.", until_step=2), operations()]
    runs = []
    for _ in range(2):
        module, seen = regression(namespace), recorder(namespace, lambda _, m: frozen_layers(m))
        trainer(namespace, callbacks=[*ours, seen]).fit(module, batches(), batches())
        runs.append((seen.seen, [p.detach().clone() for p in module.parameters()]))
    assert runs[0][0] == runs[1][0] == [["layer1"], ["layer1", "layer2"], ["layer2"], ["layer2"]]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


def test_a_head_that_is_built_late_may_be_all_that_trains() -> None:
    """In `setup` the frozen backbone is the whole model; that is not final."""
    module = regression(LONE)
    head = module.network.layer2
    module.network.layer2 = nn.Identity()

    def configure_model(self: Any) -> None:
        self.network.layer2 = head

    type(module).configure_model = configure_model
    module.network.layer1.requires_grad_(True)
    seen = recorder(LONE, lambda _, module: frozen_layers(module))
    rest = [name for name, _ in module.network.named_children() if name != "layer2"]
    held = [f"{name}." for name in rest if list(getattr(module.network, name).parameters())]
    trainer(LONE, callbacks=[Freezer(name_starts_with=held, until_step=2), seen]).fit(
        module, batches(), batches()
    )

    assert "layer1" in seen.seen[0]
    assert seen.seen[-1] == []


def test_a_latch_of_layers_that_are_built_late_survives_a_resume(tmp_path: Path) -> None:
    """Their rule is made after the state of the checkpoint was read, and gets it then."""
    met = {"monitor": "val/loss", "below": 100.0}

    def fit(num_epochs: int, resume_from: Path | None = None) -> tuple[list[list[str]], Any]:
        module = regression(LONE, network=nn.Identity)

        def configure_model(self: Any) -> None:
            self.network = TinyNet()

        type(module).configure_model = configure_model
        seen = recorder(LONE, lambda _, module: frozen_layers(module))
        freezer = Freezer(name_starts_with="layer2", until_metric=met)
        run = trainer(LONE, callbacks=[freezer, seen], max_epochs=num_epochs)
        run.fit(module, batches(), batches(), **resuming(run, resume_from))
        return seen.seen, run

    first, run = fit(1)
    run.save_checkpoint(tmp_path / "end.ckpt")
    assert first == [["layer2"]] * 4
    assert fit(2, tmp_path / "end.ckpt")[0] == [[]] * 4


def test_an_optimizer_that_is_not_there_is_an_error_beside_one_optimizer() -> None:
    """A misspelt name is no choice that could be passed over."""

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1)

    freezer = Freezer(name_starts_with="layer1.", until_step=2, optimizer="decodr")
    with pytest.raises(ValueError, match="decodr"):
        trainer(LONE, callbacks=[freezer]).fit(regression(LONE, optimizer=sgd), batches(), batches())
