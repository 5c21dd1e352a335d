"""A layer that the module replaces after set-up is refused by name."""

from typing import Any

import pytest
from torch import nn

from lighter_freezers import Freezer
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
