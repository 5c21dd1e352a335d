"""A layer that the module replaces after set-up is refused by name."""

from typing import Any

import pytest
from torch import nn

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations, Lisa
from tests.callbacks.block_net import BlockNet
from tests.lab import NAMESPACES, WIDTH, batches, regression, trainer


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_end"])
@pytest.mark.parametrize("when", [{}, {"until_step": 6}, {"from_step": 2}])
def test_a_replaced_layer_is_named(namespace: str, hook: str, when: dict[str, Any]) -> None:
    """Whenever it is replaced: it would train although a Freezer holds its name."""
    module = regression(namespace)

    def replace() -> None:
        module.network.layer1 = nn.Linear(WIDTH, WIDTH)

    setattr(module, hook, replace)
    with pytest.raises(RuntimeError, match=r"found network.layer1.weight.*replaced.*configure_model"):
        trainer(namespace, callbacks=[Freezer(name_starts_with="layer1.", **when)], max_epochs=3).fit(
            module, batches(), batches()
        )


@pytest.mark.parametrize(
    "when",
    [
        {"until_epoch": 1},
        {"until_step": 4},
        {"windows": [[0, 2]]},
        {"until_metric": {"monitor": "val/loss", "below": 100.0}},
    ],
)
def test_what_is_released_for_good_may_be_replaced(when: dict[str, Any]) -> None:
    """The Freezer has nothing to hold there any more."""
    module = regression(NAMESPACES[0])

    def replace() -> None:
        module.network.layer1 = nn.Linear(WIDTH, WIDTH)

    module.on_train_epoch_end = replace
    run = trainer(NAMESPACES[0], callbacks=[Freezer(name_starts_with="layer1.", **when)], max_epochs=3)
    run.fit(module, batches(), batches())
    assert run.global_step == 12


OTHERS: dict[str, Any] = {
    "gradual": lambda: GradualUnfreezing(every_n_steps=3),
    "stages": lambda: GradualUnfreezing(stages=[{"thaw": "head", "until_step": 9}, {"thaw": "*"}]),
    "operation": lambda: LayerOperations(
        [{"name": "freeze_layer", "value": "block.1", "max_wait_iters": 0}], monitor="training_loss"
    ),
    "late operation": lambda: LayerOperations(
        [{"name": "freeze_layer", "value": "block.1", "max_wait_iters": 9}], monitor="training_loss"
    ),
    "policy": lambda: Lisa(num_blocks=1, every_n_steps=2),
}


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start"])
@pytest.mark.parametrize("other", OTHERS)
def test_other_callbacks_refuse_it_too(hook: str, other: str) -> None:
    """By name, or where it is about to freeze, with the way out."""
    module = regression(NAMESPACES[0], BlockNet)

    def replace() -> None:
        module.network.blocks[1] = nn.Linear(WIDTH, WIDTH)

    setattr(module, hook, replace)
    with pytest.raises(RuntimeError, match=r"replaced .*__init__, setup or configure_model"):
        trainer(NAMESPACES[0], callbacks=[OTHERS[other]()], max_epochs=3).fit(module, batches(), batches())
