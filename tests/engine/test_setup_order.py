"""The engine is set up once, after the callback that asks for it first, in every stage; late modules too."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer, GradientNormMonitor
from tests.lab import NAMESPACES, batches, frozen_layers, recorder, regression, trainer

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


def test_an_optimizer_that_is_not_there_is_an_error_beside_one_optimizer() -> None:
    """A misspelt name is no choice that could be passed over."""

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.1)

    freezer = Freezer(name_starts_with="layer1.", until_step=2, optimizer="decodr")
    with pytest.raises(ValueError, match="decodr"):
        trainer(LONE, callbacks=[freezer]).fit(regression(LONE, optimizer=sgd), batches(), batches())
