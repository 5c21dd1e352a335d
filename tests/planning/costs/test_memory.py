"""Bytes of gradients and optimizer state, against those of real optimizers that made a real step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from lighter_freezers.planning.costs.memory import gradient_bytes, optimizer_state_bytes, parameter_bytes

CLASSES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    **{
        name: getattr(torch.optim, name)
        for name in (
            *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam"),
            *("RMSprop", "Rprop", "SGD"),
        )
    },
    "SGD with momentum": partial(torch.optim.SGD, momentum=0.9),
    "AMSGrad, fused": partial(torch.optim.AdamW, amsgrad=True, fused=True),
    "AdamW, foreach": partial(torch.optim.AdamW, foreach=True),
    "RMSprop with all": partial(torch.optim.RMSprop, momentum=0.9, centered=True),
}


def network() -> nn.Module:
    """Two matrices of other shapes, biases, a scalar, one weight in half precision, one frozen layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 3, bias=False), nn.Linear(3, 3))
    net.scale = nn.Parameter(torch.tensor(1.0))
    net.low = nn.Parameter(torch.ones(7, 2, dtype=torch.bfloat16))
    net[2].requires_grad_(False)
    return net


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    (net(torch.ones(2, 6)).sum() * net.scale + net.low.sum()).backward()
    optimizer.step()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("name", CLASSES)
def test_state_is_what_the_class_really_makes(name: str) -> None:
    """Asked of an optimizer that has not stepped yet, of its class, and of one that has."""
    net = network()
    optimizer = CLASSES[name]([p for p in net.parameters() if p.requires_grad])
    foretold = optimizer_state_bytes(optimizer, net.parameters())
    step(net, optimizer)

    assert foretold == state_bytes(optimizer) == optimizer_state_bytes(optimizer, net.parameters())
    assert foretold == optimizer_state_bytes(CLASSES[name], net.parameters())


def test_no_optimizer_is_adamw() -> None:
    """Two moments and a step counter of four bytes for each parameter that trains."""
    net = network()

    assert optimizer_state_bytes(None, net.parameters()) == 2 * gradient_bytes(net.parameters()) + 4 * 5
    assert gradient_bytes(net.parameters()) == 4 * (60 + 10 + 30 + 1) + 2 * 14
    assert parameter_bytes(net.parameters()) == 4 * (60 + 10 + 30 + 9 + 3 + 1) + 2 * 14


def test_groups_have_options_of_their_own() -> None:
    """Momentum in one group only, an LR scheduler around `step`, a hook, and a parameter it lacks."""
    net = network()
    net[2].requires_grad_(True)
    groups = [{"params": [net[0].weight], "momentum": 0.9}, {"params": [net[1].weight, net[2].weight]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    steps: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: steps.append(1))

    assert optimizer_state_bytes(optimizer, [net[0].weight, net[1].weight]) == 4 * 60
    assert optimizer_state_bytes(optimizer, [net[0].bias]) == 4 * 10  # as in the first group
    assert steps == []
    assert not optimizer.state


def test_a_class_that_looks_at_values() -> None:
    """It cannot step without memory, so it steps on zeros."""

    class Curious(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    size = parameter.grad.abs().max().item()
                    self.state[parameter]["past"] = [torch.full((2,), size), parameter.clone()]

    weight = nn.Parameter(torch.ones(5))

    assert optimizer_state_bytes(Curious, [weight]) == 4 * (2 + 5)


def test_one_state_for_all_cannot_be_told_apart() -> None:
    """LBFGS."""
    with pytest.raises(ValueError, match="LBFGS remembers all parameters together"):
        optimizer_state_bytes(torch.optim.LBFGS, network().parameters())


def test_nothing_that_trains_has_no_state() -> None:
    """Not even an optimizer is made."""
    assert optimizer_state_bytes(torch.optim.LBFGS, [nn.Parameter(torch.ones(2), requires_grad=False)]) == 0
