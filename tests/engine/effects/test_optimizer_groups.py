"""Groups are added and split without disturbing what the optimizer and its schedulers know."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs

from lighter_freezers.engine.effects import optimizer_groups

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lrs.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 4], 0.5),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.1, 1.0, 5),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 8, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lrs.OneCycleLR(o, max_lr=0.2, total_steps=20),
    "CyclicLR": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "SequentialLR": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1), lrs.CosineAnnealingLR(o, 8)], [3]),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler([lrs.LinearLR(o, 0.1), lrs.ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0, factor=0.5),
}


def layers(number: int = 3) -> dict[str, nn.Parameter]:
    return {f"layer{index}.weight": nn.Parameter(torch.ones(2, 2)) for index in range(number)}


def ids(parameters: dict[str, nn.Parameter]) -> dict[int, str]:
    return {id(parameter): name for name, parameter in parameters.items()}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_split_group_follows_its_home_under_every_scheduler(name: str) -> None:
    """Built before or after the split, in the middle of its course or not: the two rates are the same."""
    parameters = layers()
    first, second, third = parameters.values()
    groups = [{"params": [third], "lr": 0.7}, {"params": [first, second]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    rates = []
    for step in range(8):
        if step == 2:
            chosen = {"layer0.weight": parameters["layer0.weight"]}
            optimizer_groups.split_off(chosen, "thawed", [optimizer], [scheduler])
        optimizer.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        rates.append([group["lr"] for group in optimizer.param_groups])

    assert [len(row) for row in rates] == [2, 2] + [3] * 6
    assert all(row[1] == row[-1] for row in rates)
    assert len({row[1] for row in rates}) > 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_grown_scheduler_saves_and_loads(name: str) -> None:
    """Its state has an entry for the new group, so a resumed run can read it."""
    states = []
    for _ in range(2):
        parameters = layers()
        optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        optimizer_groups.split_off(dict(list(parameters.items())[:1]), "thawed", [optimizer], [scheduler])
        if states:
            scheduler.load_state_dict(states[0])
        optimizer.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        states.append(scheduler.state_dict())

    assert len(optimizer.param_groups) == 2


def test_splitting_keeps_options_state_and_parameter_names() -> None:
    """Weight decay, moments and names go along; the old group keeps the rest."""
    parameters = layers()
    optimizer = torch.optim.AdamW(parameters.items(), lr=0.1, weight_decay=0.3)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    chosen = {"layer1.weight": parameters["layer1.weight"]}
    assert optimizer_groups.split_off(chosen, "thawed", [optimizer], []) == [(optimizer, 1, 0)]
    home, group = optimizer.param_groups

    assert group["param_names"] == ["layer1.weight"]
    assert home["param_names"] == ["layer0.weight", "layer2.weight"]
    assert (group["name"], group["weight_decay"]) == ("thawed", 0.3)
    assert optimizer.state[parameters["layer1.weight"]]["step"] == 1


def test_a_group_that_is_split_off_whole_leaves_an_empty_home() -> None:
    """The scheduler goes on driving it, and the optimizer steps over it."""
    parameters = layers(1)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    optimizer_groups.split_off(parameters, "thawed", [optimizer], [])
    home, group = optimizer.param_groups
    parameters["layer0.weight"].grad = torch.ones(2, 2)
    optimizer.step()

    assert (len(home["params"]), len(group["params"])) == (0, 1)
    assert not torch.equal(parameters["layer0.weight"], torch.ones(2, 2))


def test_a_missing_parameter_joins_its_nearest_relative() -> None:
    """Same block before other blocks; biases to biases, so that no decay stays no decay."""
    names = ["a.0.weight", "a.0.bias", "b.0.weight", "b.0.bias", "b.1.weight", "b.1.bias"]
    parameters = {
        name: nn.Parameter(torch.ones(2, 2) if "weight" in name else torch.ones(2)) for name in names
    }
    groups = [
        {"params": [parameters["a.0.weight"]], "weight_decay": 0.1, "lr": 0.1},
        {"params": [parameters["b.0.weight"]], "weight_decay": 0.1, "lr": 0.2},
        {"params": [parameters["a.0.bias"], parameters["b.0.bias"]], "weight_decay": 0.0, "lr": 0.3},
    ]
    optimizer = torch.optim.AdamW(groups)
    missing = {name: parameters[name] for name in names[4:]}
    added = optimizer_groups.add_missing(missing, ids(parameters), [optimizer], [])

    expected = [(0, 3, 1, "thawed-2", ["b.1.weight"]), (0, 4, 2, "thawed-3", ["b.1.bias"])]
    assert added == [optimizer_groups.AddedGroup(*each) for each in expected]
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups[3:]] == [(0.2, 0.1), (0.3, 0.0)]


def test_a_missing_parameter_joins_the_optimizer_of_its_relatives() -> None:
    """A generator's layer does not end up with the discriminator."""
    parameters = {
        name: nn.Parameter(torch.ones(2)) for name in ("discriminator.0", "generator.0", "generator.1")
    }
    optimizers = [
        torch.optim.SGD([parameters["discriminator.0"]], lr=1),
        torch.optim.SGD([parameters["generator.0"]], lr=2),
    ]
    optimizer_groups.add_missing({"generator.1": parameters["generator.1"]}, ids(parameters), optimizers, [])

    assert [len(optimizer.param_groups) for optimizer in optimizers] == [1, 2]


def test_forgotten_state_starts_afresh() -> None:
    """Adam's step count of a forgotten parameter begins at one again."""
    parameters = layers(2)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    for step in range(3):
        if step == 2:
            optimizer_groups.forget_state([parameters["layer0.weight"]], [optimizer])
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    assert [optimizer.state[parameter]["step"].item() for parameter in parameters.values()] == [1, 3]


def test_lbfgs_is_refused_by_name() -> None:
    """It knows one group only."""
    parameters = layers()
    optimizer = torch.optim.LBFGS(parameters.values())

    with pytest.raises(ValueError, match="LBFGS supports one parameter group only. .* remove unfreeze_lr"):
        optimizer_groups.split_off(dict(list(parameters.items())[:1]), "thawed", [optimizer], [])
