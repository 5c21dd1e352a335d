"""Describes what callbacks will do to one model, from the rules that they make for it."""

from collections.abc import Mapping, Sequence

from torch import nn

import lighter_freezers
from lighter_freezers.engine.rules import FreezeRule
from lighter_freezers.engine.triggers import Schedule
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["comments_on", "described", "first_step"]


def comments_on(config: Mapping[str, object], model: nn.Module) -> list[str]:
    """A line for each rule of a callback: which parameters, how many, until when, at which rate.

    Args:
        config: A callback of this package as it stands in a config.
        model: The module that will train.
    """
    return [_line(rule, model) for rule in _rules(config, model)]


def first_step(configs: Sequence[Mapping[str, object]], model: nn.Module) -> str:
    """A short phrase for what trains in the first step."""
    held = {
        name
        for config in configs
        for rule in _rules(config, model)
        if rule.schedule != Schedule(until_step=0)
        for name in rule.selector.select(model)
    }
    training = (name for name, each in canonical_parameters(model).items() if each.requires_grad)
    return described([name for name in training if name not in held], model)


def _rules(config: Mapping[str, object], model: nn.Module) -> list[FreezeRule]:
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    callback = getattr(lighter_freezers, str(config["_target_"]).rpartition(".")[2])(**arguments)
    rules: list[FreezeRule] = callback.rules_for(model)
    return rules


def _line(rule: FreezeRule, model: nn.Module) -> str:
    what = described(list(rule.selector.select(model)), model)
    rate = rule.learning_rate
    share = f"at {rate.factor:.3g} of the learning rate" if rate is not None and rate.factor != 1 else ""
    if rule.schedule == Schedule(until_step=0):
        return f"{what}: trains {share}"
    held = f"frozen {rule.schedule}" if rule.schedule != Schedule() else "frozen for the whole run"
    return f"{what}: {held}{', then trains ' * bool(share)}{share}"


def described(names: Sequence[str], model: nn.Module) -> str:
    """Some parameters of a model as a short phrase, how many elements they have, and their share of all."""
    sizes = {name: parameter.numel() for name, parameter in canonical_parameters(model).items()}
    number = sum(sizes[name] for name in names)
    share = number / max(1, sum(sizes.values()))
    return f"{NameSummary(list(sizes)).compress(names)} ({number:,} parameters, {share:.1%})"
