"""Shared by all functions of this package: look parameters up by name, change the ledger, log one line."""

import sys
from collections.abc import Iterable, Sequence

from torch import distributed, nn
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from lighter_freezers._log import log
from lighter_freezers.arguments import at_least
from lighter_freezers.engine import ledger
from lighter_freezers.selection.adapters import adapters_in
from lighter_freezers.selection.element_counts import num_elements
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["checked_count", "freeze", "lora_factors", "say", "thaw", "thaw_layers"]

_NOBODY = "the layer verbs"  # these functions hold nothing: their changes count as made by the user


def freeze(model: nn.Module, names: Iterable[str], deed: str) -> int:
    """Freeze parameters until they are thawed by another call.

    Args:
        model: The module that has them.
        names: Their canonical names.
        deed: What was requested; the log line starts with it.

    Returns:
        The number of elements that were trainable and are now frozen.
    """
    named = canonical_parameters(model)
    frozen = ledger.freeze([named[name] for name in names])
    amount = _amount(frozen)
    say(f"{deed}: " + (f"{amount} are frozen now." if amount else "all were frozen already."))
    return num_elements(frozen)


def thaw(model: nn.Module, names: Iterable[str], deed: str) -> int:
    """Let parameters train, unless a running Freezer still holds them.

    Returns:
        The number of elements that train from now on.
    """
    named, kept = canonical_parameters(model), adapters_in(model).kept
    listed = [named[name] for name in names]
    asked = [parameter for parameter in listed if id(parameter) not in kept]
    if len(asked) < len(listed):
        left = num_elements(parameter for parameter in listed if id(parameter) in kept)
        say(f"{deed}: {left:,} parameters below adapters stay frozen, as PEFT keeps them.")
    thawed = ledger.thaw(asked, _NOBODY)
    amount = _amount(thawed)
    say(f"{deed}: " + (f"{amount} train now." if amount else "all that can train already do."))
    _explain([parameter for parameter in asked if not parameter.requires_grad], deed)
    return num_elements(thawed)


def thaw_layers(model: nn.Module, layers: Iterable[Iterable[str]], deed: str) -> int:
    """Let layers train; of a layer with adapters only these, since what they adapt stays as it is.

    Args:
        model: The module that has them.
        layers: For each layer the canonical names of its parameters.
        deed: What was requested; the log line starts with it.

    Returns:
        The number of elements that train from now on.
    """
    named, adapters = canonical_parameters(model), adapters_in(model)
    return thaw(model, [name for names in layers for name in adapters.free(named, names)], deed)


def lora_factors(model: nn.Module) -> dict[str, Parameter]:
    """Canonical name -> LoRA factor, those of rank 0 too."""
    if "peft" not in sys.modules:
        return {}
    from lighter_freezers.lora.sites import find_lora_sites

    ids = {id(p) for site in find_lora_sites(model).values() for p in site.factors.parameters}
    return {name: p for name, p in canonical_parameters(model).items() if id(p) in ids}


def _amount(parameters: Sequence[Parameter]) -> str:
    """How many elements, and how many tensors of lazy layers, which have none yet; empty for nothing."""
    elements, lazy = num_elements(parameters), sum(map(is_lazy, parameters))
    words = (elements and f"{elements:,} parameters", lazy and f"{lazy} tensors of lazy layers")
    return " and ".join(word for word in words if word)


def _explain(frozen: Iterable[Parameter], deed: str) -> None:
    held = [parameter for parameter in frozen if ledger.is_held(parameter)]
    if held:
        holders = sorted({holder for parameter in held for holder in ledger.holders(parameter)})
        log.warning(
            "%s: %s parameters stay frozen until %s releases them.",
            *(deed, f"{num_elements(held):,}", " and ".join(holders)),
        )


def say(sentence: str) -> None:
    """Log a change of what trains, on one rank of several."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank()):
        log.info(sentence)


def checked_count(n: object, num_layers: int, deed: str) -> int:
    """Check a number of layers; a number above that of the model means all, with a warning.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is negative.
    """
    checked = at_least("n", n)
    if checked > num_layers:
        log.warning("%s: the model has %d layers, not %d; all are taken.", deed, num_layers, checked)
    return min(checked, num_layers)
