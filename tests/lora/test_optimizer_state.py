"""Moments through a change of rank, against autograd, hand arithmetic and an optimizer that never noticed."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from lighter_freezers import resize_lora_layer
from lighter_freezers.lora.optimizer_state import NewComponents
from lighter_freezers.lora.sites import find_lora_sites
from tests.lora.lora_lab import KINDS, Single, inputs, steps, trained


def factors(model: Single) -> tuple[Parameter, Parameter]:
    return next(iter(find_lora_sites(model).values())).factors.parameters


def gradients(model: Single, x: torch.Tensor) -> list[torch.Tensor]:
    """Of a fixed loss, at the factors as they are."""
    weights = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(4))
    return list(torch.autograd.grad((model(x) * weights).sum(), factors(model)))


def lower_rank(kind: str, rank: int) -> Single:
    """A layer with 8 components whose update has a lower rank, so that shrinking loses nothing."""
    model = trained(kind)
    A, B = factors(model)
    with torch.no_grad():
        mix = torch.randn(8, rank, generator=torch.Generator().manual_seed(6))
        A.copy_((mix @ A[:rank].flatten(1)).reshape(A.shape))
    return model.double()


@pytest.mark.parametrize("kind", KINDS)
def test_means_of_gradients_go_where_gradients_go(kind: str) -> None:
    """Where the function stays, the carried mean is what autograd gives at the new factors."""
    model, x = lower_rank(kind, 3), inputs(kind)
    x = x.double() if x.is_floating_point() else x
    optimizer = torch.optim.SGD(factors(model), lr=0.0, momentum=0.9)
    for parameter, gradient in zip(factors(model), gradients(model, x), strict=True):
        parameter.grad = gradient
    optimizer.step()  # the buffer is the gradient then
    resize_lora_layer(model.target, 3, optimizers=[optimizer])

    for parameter, gradient in zip(factors(model), gradients(model, x), strict=True):
        carried = optimizer.state[parameter]["momentum_buffer"]
        assert torch.allclose(carried, gradient, rtol=1e-6, atol=1e-9 * float(gradient.abs().max()))


def test_squares_of_steady_gradients_are_exact() -> None:
    """Without noise the second moment is the square of the first; so it has an exact image."""
    model, x = lower_rank("Linear", 3), inputs("Linear").double()
    optimizer = torch.optim.AdamW(factors(model), lr=0.0)
    for _ in range(5):
        for parameter, gradient in zip(factors(model), gradients(model, x), strict=True):
            parameter.grad = gradient
        optimizer.step()
    resize_lora_layer(model.target, 3, optimizers=[optimizer])

    for parameter, gradient in zip(factors(model), gradients(model, x), strict=True):
        state = optimizer.state[parameter]
        assert torch.allclose(state["exp_avg"], (1 - 0.9**5) * gradient, rtol=1e-6, atol=1e-12)
        assert torch.allclose(state["exp_avg_sq"], (1 - 0.999**5) * gradient.square(), rtol=1e-5, atol=1e-12)
        assert state["step"] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_squares_never_turn_negative(kind: str) -> None:
    """After real training, with amsgrad, at every rank."""
    model, x = trained(kind), inputs(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
    for rank in (5, 7, 2):
        steps(model, optimizer, x)
        resize_lora_layer(model.target, rank, optimizers=[optimizer])
        for parameter in factors(model):
            state = optimizer.state[parameter]
            assert all(state[key].min() >= 0 for key in ("exp_avg_sq", "max_exp_avg_sq"))
            assert all(value.shape == parameter.shape for key, value in state.items() if key != "step")


@pytest.mark.parametrize("kind", KINDS)
def test_growth_leaves_old_components_as_they_are(kind: str) -> None:
    """Bit for bit, weights and moments; so their next step is the one they would have made."""
    grown, plain = trained(kind), trained(kind)
    x = inputs(kind)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (grown, plain)]
    for model, optimizer in zip((grown, plain), optimizers, strict=True):
        steps(model, optimizer, x)
    resize_lora_layer(grown.target, 12, optimizers=[optimizers[0]])

    for axis, (new, old) in enumerate(zip(factors(grown), factors(plain), strict=True)):
        assert torch.equal(new.narrow(axis, 0, 8), old)
        for key in ("exp_avg", "exp_avg_sq"):
            carried, before = optimizers[0].state[new][key], optimizers[1].state[old][key]
            assert torch.equal(carried.narrow(axis, 0, 8), before)
        assert not optimizers[0].state[new]["exp_avg"].narrow(axis, 8, 4).any()


def grow_late(new: NewComponents | None) -> tuple[Single, torch.optim.Optimizer, torch.Tensor]:
    """Grow after so many steps that zeros as second moments would be a disaster."""
    model, x = trained("Linear"), inputs("Linear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    steps(model, optimizer, x, 50)
    for state in optimizer.state.values():
        state["step"].fill_(10_000)
    change = resize_lora_layer(model.target, 16, optimizers=[optimizer])
    site = next(iter(find_lora_sites(model).values()))
    if new is not None:
        new.expect(site, change.num_kept)
    return model, optimizer, x


def test_new_components_begin_with_their_first_gradient() -> None:
    """After the step, (1 - beta^t) g^2 stands there; where there is no gradient yet, what the others have."""
    new = NewComponents()
    model, optimizer, x = grow_late(new)
    A, B = factors(model)
    model(x).square().mean().backward()
    gradient = B.grad[:, 8:].clone()
    others = optimizer.state[A]["exp_avg_sq"][:8].mean(0)
    assert new.is_waiting
    new.start(optimizer)
    assert not new.is_waiting
    assert torch.allclose(optimizer.state[A]["exp_avg_sq"][8:], others.expand(8, -1))
    optimizer.step()

    expected = (1 - 0.999**10_001) * gradient.square()
    assert torch.allclose(optimizer.state[B]["exp_avg_sq"][:, 8:], expected, rtol=1e-4)


def test_growth_has_no_aftershock() -> None:
    """The loss stays within 0.05 of a run that did not grow, at Adam's 10,000th step."""
    plain, x = trained("Linear"), inputs("Linear")
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    steps(plain, optimizer, x, 50)
    for state in optimizer.state.values():
        state["step"].fill_(10_000)
    losses = steps(plain, optimizer, x, 10)
    new = NewComponents()
    grown, optimizer, x = grow_late(new)
    optimizer.register_step_pre_hook(lambda *_: new.start(optimizer))  # after backward, in this plain loop

    for ours, theirs in zip(steps(grown, optimizer, x, 10), losses, strict=True):
        assert abs(ours - theirs) < 0.05


def test_what_is_frozen_waits_for_its_first_gradient() -> None:
    """Through a checkpoint too, which keeps plain types."""
    new = NewComponents()
    model, optimizer, x = grow_late(new)
    sites = find_lora_sites(model)
    state = new.state()
    assert state == {"target": {"A": 8, "B": 8}}
    new.start(optimizer)
    assert new.is_waiting  # no gradient yet

    again = NewComponents()
    again.remember(state, sites)
    model(x).square().mean().backward()
    factors(model)[1].grad = None
    again.start(optimizer)
    assert again.state() == {"target": {"B": 8}}
    again.remember(state, {})
    assert not again.is_waiting


def test_grown_twice_both_are_new_and_shrunk_none_is_left() -> None:
    """What waits is counted from the oldest component that is new."""
    model = trained("Linear")
    site = next(iter(find_lora_sites(model).values()))
    new = NewComponents()
    for rank, state in ((10, {"A": 8, "B": 8}), (14, {"A": 8, "B": 8}), (6, None), (0, None), (4, None)):
        new.expect(site, resize_lora_layer(model.target, rank).num_kept)
        assert new.state() == ({"target": state} if state else {})


@pytest.mark.parametrize("name", ["Adamax", "Rprop", "ASGD"])
def test_memory_of_an_unknown_kind_is_dropped_and_said(name: str, caplog: Any) -> None:
    """A fresh start for the factors, and for nothing else."""
    model, x = trained("Linear"), inputs("Linear")
    model.head.requires_grad_(True)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
    steps(model, optimizer, x)
    with caplog.at_level("INFO", logger="lighter_freezers"):
        resize_lora_layer(model.target, 5, optimizers=[optimizer])

    assert name in caplog.text
    assert not any(parameter in optimizer.state for parameter in factors(model))
    assert model.head.weight in optimizer.state
    steps(model, optimizer, x)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adam"])
def test_every_usual_optimizer_goes_on(name: str) -> None:
    """With options that give it memory."""
    options = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9}}.get(name, {})
    model, x = trained("Linear"), inputs("Linear")
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.005, **options)
    for rank in (12, 5, 0, 6):
        steps(model, optimizer, x)
        resize_lora_layer(model.target, rank, optimizers=[optimizer])
        if rank in (12, 5):
            assert all(parameter in optimizer.state for parameter in factors(model))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("rank", [12, 5])
def test_a_step_count_alone_stays(rank: int) -> None:
    """An optimizer may keep no more than a number for each parameter."""
    model, x = trained("Linear"), inputs("Linear")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    for parameter in factors(model):
        optimizer.state[parameter] = {"step": torch.tensor(3.0)}
    resize_lora_layer(model.target, rank, optimizers=[optimizer])
    assert [float(optimizer.state[parameter]["step"]) for parameter in factors(model)] == [3.0, 3.0]
    steps(model, optimizer, x)
