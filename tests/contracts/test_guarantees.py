"""The seven guarantees, each in the smallest run that would show a breach."""

import re
import sys
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer
from lighter_freezers.engine.engine import Engine
from tests.lab import NormNet, batches, frozen_at_each_step, frozen_layers, recorder, regression, trainer

LONE = "pytorch_lightning"


def test_g1_freezers_compose() -> None:
    """Frozen while anyone holds it, then as it was before, in any order; nothing else is touched."""
    module = regression(LONE)
    module.network.head.bias.requires_grad_(False)
    freezers = [
        Freezer(name_starts_with="layer2", until_step=3),
        Freezer(name_starts_with=["layer2", "head"], until_step=2),
    ]
    seen = recorder(LONE, lambda _, m: [n for n, p in m.network.named_parameters() if not p.requires_grad])
    trainer(LONE, callbacks=[*freezers, seen]).fit(module, batches(), batches())

    layer2 = ["layer2.weight", "layer2.bias"]
    assert seen.seen == [[*layer2, "head.weight", "head.bias"]] * 2 + [[*layer2, "head.bias"], ["head.bias"]]


def test_g2_the_schedule_is_a_pure_function() -> None:
    """Entered in the middle, at a step that no earlier run has seen, it holds what it would have held."""
    windows = [[1, 3], [5, 7]]
    whole = frozen_at_each_step(LONE, [Freezer(name_starts_with="layer2", windows=windows)], max_epochs=2)
    module = regression(LONE)
    fit = trainer(LONE, callbacks=[], max_epochs=1)
    fit.fit(module, batches(), batches())
    seen = recorder(LONE, lambda _, m: frozen_layers(m))
    fit.callbacks += [Freezer(name_starts_with="layer2", windows=windows), seen]
    fit.fit_loop.max_epochs = 2
    fit.fit(module, batches(), batches())

    assert seen.seen == whole[4:] == [[], ["layer2"], ["layer2"], []]


def test_g3_frozen_means_frozen() -> None:
    """Momentum, weight decay, old gradients and batch norm move nothing: bit-equal, without a gradient."""
    module = regression(LONE, network=NormNet)
    module.optimizer_zero_grad = lambda epoch, batch_idx, optimizer: optimizer.zero_grad(set_to_none=False)

    def state(_: Any, m: Any) -> list[torch.Tensor]:
        assert all(p.grad is None for p in m.network.backbone.parameters() if not p.requires_grad)
        return [value.clone() for value in m.network.backbone.state_dict().values()]

    seen = recorder(LONE, state)
    freezer = Freezer(name_starts_with="backbone", from_step=1)
    trainer(LONE, callbacks=[freezer, seen], max_epochs=2, accumulate_grad_batches=2).fit(
        module, batches(), batches()
    )
    at_freeze = seen.seen[1]  # one window of two batches

    assert all(all(map(torch.equal, at_freeze, later)) for later in seen.seen[2:])
    assert not all(map(torch.equal, seen.seen[0], at_freeze))


def test_g4_thawed_means_training() -> None:
    """Also what the optimizer was built without, at the rate asked for; DDP has a file of its own."""

    def build(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.5)

    module = regression(LONE, optimizer=build)
    weight = module.network.layer2.weight
    steps = recorder(LONE, lambda *_: (weight.detach().clone(), weight.grad), "on_before_optimizer_step")
    freezer = Freezer(name_starts_with="layer2", until_step=2, unfreeze_lr=0.125)
    trainer(LONE, callbacks=[freezer, steps]).fit(module, batches(), batches())
    (_, none), (_, _), (before, gradient), (after, _) = steps.seen

    assert none is None
    assert torch.equal(after, before - 0.125 * gradient)


def test_g5_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Any) -> None:
    """Here within a warm-up; every step and a killed process are in test_freezer_resume."""
    weights = []
    for resume_from in (None, tmp_path / "half.ckpt"):
        module = regression(LONE)
        callbacks = [Freezer(name_starts_with="layer2", until_step=3, unfreeze_lr_factor=0.5, warmup_steps=5)]
        if resume_from is None:
            first = trainer(LONE, callbacks=callbacks, max_epochs=1)
            first.fit(regression(LONE), batches(), batches())
            first.save_checkpoint(tmp_path / "half.ckpt")
        fit = trainer(LONE, callbacks=callbacks, max_epochs=2)
        fit.fit(module, batches(), batches(), ckpt_path=resume_from)
        weights.append(module.state_dict())

    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_g6_fail_early_with_the_way_out() -> None:
    """A name that matches nothing: before the first batch, with the nearest names."""
    module, fit = regression(LONE), trainer(LONE, callbacks=[Freezer(name_starts_with="layr2")])
    with pytest.raises(ValueError, match="layr2.*layer2"):
        fit.fit(module, batches(), batches())

    assert fit.global_step == 0


@pytest.mark.parametrize("num_layers", [2, 200])
def test_g7_nothing_idle_costs_anything(num_layers: int) -> None:
    """Between transitions one short Python function runs per batch, whatever the size of the model."""
    calls: list[str] = []

    def profile(frame: Any, event: str, _: Any) -> None:
        place = r"lighter_freezers/(callbacks|engine)/\w+\.py$"  # hooks of effects run in the forward pass
        if event == "call" and re.search(place, frame.f_code.co_filename):
            calls.append(frame.f_code.co_name)

    class Deep(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*(nn.Linear(8, 8) for _ in range(num_layers)), nn.Linear(8, 1))

    freezers = [Freezer(name_starts_with=f"{index}.", until_step=1000) for index in range(2)]
    probe = recorder(LONE, lambda *_: sys.setprofile(profile), "on_train_batch_end")
    fit = trainer(LONE, callbacks=[*freezers, probe])
    try:
        fit.fit(regression(LONE, network=Deep), batches(), None if num_layers < 0 else batches())
    finally:
        sys.setprofile(None)

    assert calls[:3] == ["on_train_batch_start"] * 3  # the first batch ends before the profile begins
    assert any(isinstance(callback, Engine) for callback in fit.callbacks)
