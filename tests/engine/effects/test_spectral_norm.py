"""A frozen layer with a spectral norm stands still, its vectors included, and goes on after the thaw."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lighter_freezers import Freezer
from tests.lab import NAMESPACES, WIDTH, batches, recorder, regression, trainer

KINDS: dict[str, Any] = {"parametrization": parametrizations.spectral_norm, "hook": nn.utils.spectral_norm}


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["eval", "stats"])
@pytest.mark.parametrize("windows", [[[0, 3]], [[2, 5]]])
def test_its_vectors_stand_still(namespace: str, kind: str, mode: Any, windows: Any) -> None:
    def network() -> nn.Module:
        layers = {"low": KINDS[kind](nn.Linear(WIDTH, WIDTH)), "head": nn.Linear(WIDTH, 1)}
        return nn.Sequential(*layers.values())

    module = regression(namespace, network)
    states: list[tuple[bool, list[torch.Tensor]]] = []
    low = module.network[0]

    def note(*_: Any) -> None:
        states.append((next(low.parameters()).requires_grad, [t.clone() for t in low.state_dict().values()]))

    freezer = Freezer(name_starts_with="0.", windows=windows, frozen_norms=mode)
    begin = recorder(namespace, note, "on_train_batch_start")
    callbacks = [freezer, begin, recorder(namespace, note)]
    trainer(namespace, callbacks=callbacks, max_epochs=2).fit(module, batches(), batches())
    steps = list(zip(states[::2], states[1::2], strict=True))
    held = {step for start, end in windows for step in range(start, end)}
    for step, ((flag, before), (_, after)) in enumerate(steps):
        assert flag is (step not in held)
        same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        assert all(same) if step in held else not any(same)
