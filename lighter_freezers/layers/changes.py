"""What all verbs of this room share: names become parameters, the ledger acts, one line says what changed."""

import sys
from collections.abc import Collection, Iterable

from torch import distributed, nn
from torch.nn import Parameter

from lighter_freezers._log import log
from lighter_freezers.arguments import count
from lighter_freezers.engine import ledger
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["adapters", "checked_count", "freeze", "num_elements", "say", "thaw", "thaw_layers"]

_NOBODY = "the layer verbs"  # they hold nothing: what they do is the user's own doing


def freeze(model: nn.Module, names: Iterable[str], deed: str) -> int:
    """Freeze parameters until somebody thaws them.

    Args:
        model: Where they are.
        names: Their canonical names.
        deed: What was asked, to begin the log line with.

    Returns:
        The number of elements that trained until now.
    """
    named = canonical_parameters(model)
    frozen = num_elements(ledger.freeze([named[name] for name in names]))
    say(f"{deed}: " + (f"{frozen:,} parameters are frozen now." if frozen else "all was frozen already."))
    return frozen


def thaw(model: nn.Module, names: Iterable[str], deed: str) -> int:
    """Let parameters train, unless a running Freezer still holds them.

    Returns:
        The number of elements that train from now on.
    """
    named = canonical_parameters(model)
    asked = [named[name] for name in names]
    thawed = num_elements(ledger.thaw(asked, _NOBODY))
    say(f"{deed}: " + (f"{thawed:,} parameters train now." if thawed else "what can train does already."))
    _explain([parameter for parameter in asked if not parameter.requires_grad], deed)
    return thawed


def thaw_layers(model: nn.Module, layers: Iterable[Iterable[str]], deed: str) -> int:
    """Let layers train; of a layer with LoRA only the factors, since what they adapt stays as it is.

    Args:
        model: Where they are.
        layers: Of each layer the canonical names of its parameters.
        deed: What was asked, to begin the log line with.

    Returns:
        The number of elements that train from now on.
    """
    factors = adapters(model)
    free = [[name for name in names if name in factors] or list(names) for names in map(list, layers)]
    return thaw(model, [name for names in free for name in names], deed)


def adapters(model: nn.Module) -> Collection[str]:
    """The canonical names of the LoRA factors of a model."""
    if "peft" not in sys.modules:
        return ()
    from lighter_freezers.layers.operations.layer_holds import adapters_of

    return adapters_of(model)


def _explain(frozen: Iterable[Parameter], deed: str) -> None:
    held = [parameter for parameter in frozen if ledger.is_held(parameter)]
    if held:
        holders = sorted({holder for parameter in held for holder in ledger.holders(parameter)})
        log.warning(
            "%s: %s parameters stay frozen until %s lets them go.",
            *(deed, f"{num_elements(held):,}", " and ".join(holders)),
        )


def num_elements(parameters: Iterable[Parameter]) -> int:
    """How many numbers there are in parameters."""
    return sum(parameter.numel() for parameter in parameters)


def say(sentence: str) -> None:
    """Log a change of what trains, on one rank of several."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank()):
        log.info(sentence)


def checked_count(n: object, num_layers: int, deed: str) -> int:
    """Check a number of layers; more than there are means all, with a warning.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is negative.
    """
    checked = count("n", n)
    if checked is None:
        raise TypeError("n must be a whole number. Got None.")
    if checked > num_layers:
        log.warning("%s: the model has %d layers, not %d; all are taken.", deed, num_layers, checked)
    return min(checked, num_layers)
