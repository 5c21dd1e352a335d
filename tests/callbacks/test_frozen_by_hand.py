"""What the user froze stays frozen; a schedule that would thaw it says so before the first step."""

import logging
from typing import Any

import pytest

from lighter_freezers import Freezer, GradualUnfreezing, apply_lora
from tests.callbacks.block_net import BlockNet
from tests.lab import NAMESPACES, TinyNet, batches, regression, trainer

WHENS: dict[str, dict[str, Any]] = {
    "epoch": {"until_epoch": 1},
    "step": {"until_step": 2},
    "windows": {"windows": [[1, 3]]},
    "metric": {"until_metric": {"monitor": "train/loss", "below": 1e9}},
}


def warnings_of(module: Any, namespace: str, caplog: Any, *callbacks: Any) -> list[str]:
    trainer(namespace, callbacks=list(callbacks), max_epochs=2).fit(module, batches(), batches())
    records = [record for record in caplog.records if record.levelno == logging.WARNING]
    return [record.getMessage() for record in records if "frozen by hand" in record.getMessage()]


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("names", ["layer1.", "layer2"])
def test_a_backbone_frozen_by_hand_is_named(namespace: str, when: str, names: str, caplog: Any) -> None:
    """Alone, or beside what does thaw."""
    module = regression(namespace)
    module.network.layer1.requires_grad_(False)
    freezer = Freezer(name_starts_with=["layer1.", names], **WHENS[when])
    said = warnings_of(module, namespace, caplog, freezer)
    assert len(said) == 1
    assert "will not thaw layer1:" in said[0]
    assert not module.network.layer1.weight.requires_grad


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_blocks_frozen_by_hand_are_named(namespace: str, caplog: Any) -> None:
    """Gradual unfreezing thaws the others only."""
    module = regression(namespace, BlockNet)
    for index in (0, 1):
        module.network.blocks[index].requires_grad_(False)
    said = warnings_of(module, namespace, caplog, GradualUnfreezing(every_n_steps=1))
    assert len(said) == 1
    assert "will not thaw block 0, block 1: frozen by hand" in said[0]
    assert [each.weight.requires_grad for each in module.network.blocks] == [False, False, True, True]


@pytest.mark.parametrize("case", ["whole run", "nothing by hand", "adapters", "second fit"])
def test_no_warning_without_a_reason(case: str, caplog: Any) -> None:
    """Frozen for good, held by a Freezer of an earlier fit, or the base below an adapter."""
    network = (
        (lambda: apply_lora(TinyNet(), {"r": 2, "target_modules": ["layer1", "layer2"]}))
        if case == "adapters"
        else TinyNet
    )
    module = regression(NAMESPACES[0], network)
    freezer = Freezer(patterns="*layer2*", **({} if case == "whole run" else {"until_step": 6}))
    if case == "whole run":
        module.network.layer2.requires_grad_(False)
    if case == "second fit":
        short = trainer(NAMESPACES[0], callbacks=[freezer])
        short.fit(module, batches(), batches())
    assert warnings_of(module, NAMESPACES[0], caplog, freezer) == []
