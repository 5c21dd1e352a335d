"""Describes a transition by layers: `attn.0-3` instead of the names of sixteen parameters."""

from collections.abc import Iterable

from torch import nn

from lighter_freezers.engine.transition import Transition
from lighter_freezers.selection.layer_names import components
from lighter_freezers.selection.name_summary import NameSummary
from lighter_freezers.selection.names import canonical_name

__all__ = ["changed_layers"]


def changed_layers(model: nn.Module, transition: Transition) -> tuple[str, str]:
    """The layers that a transition froze and those that it thawed, each as a short phrase, "" for none.

    Args:
        model: The model after it.
        transition: The transition. Of the first one of a fit, only layers in which nothing trains count.
    """
    layers = components(model)
    layer_of = {name: layer for layer, names in layers.items() for name in names}
    summary = NameSummary(list(layers))
    frozen = [layer_of[name] for name in transition.frozen if name in layer_of]
    if transition.is_initial:
        training = {canonical_name(name) for name, p in model.named_parameters() if p.requires_grad}
        frozen = [layer for layer in frozen if training.isdisjoint(layers[layer])]
    thawed = [layer_of[name] for name in transition.thawed if name in layer_of]
    return _phrase(summary, frozen), _phrase(summary, thawed)


def _phrase(summary: NameSummary, layers: Iterable[str]) -> str:
    chosen = set(layers)
    return summary.compress(chosen) if chosen else ""
