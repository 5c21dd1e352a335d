"""Freezes and thaws a whole model, its embeddings, its head, or what a pattern finds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.layers.changes import freeze, thaw, thaw_layers
from lighter_freezers.layers.said import Said, anatomy_said, of_tower
from lighter_freezers.selection.anatomy import Anatomy
from lighter_freezers.selection.names import canonical_parameters, closest_names, named_aliases

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "freeze_by_name",
    "freeze_embeddings",
    "freeze_lm_head",
    "freeze_model",
    "unfreeze_by_name",
    "unfreeze_embeddings",
    "unfreeze_lm_head",
    "unfreeze_model",
]


@checked
def freeze_model(model: nn.Module) -> int:
    """Freeze all parameters.

    Args:
        model: Any module.

    Returns:
        The number of elements that were trainable and are now frozen.
    """
    return freeze(model, canonical_parameters(model), "The model")


@checked
def unfreeze_model(model: nn.Module) -> int:
    """Unfreeze all parameters, including those that were frozen when the model was built.

    These include the fixed positions of a Whisper. In a model with LoRA, the weights below the adapters and
    the originals of `modules_to_save` stay frozen, as in PEFT, and one log line names them.

    Args:
        model: Any module. Integer tensors, such as quantised weights, cannot train and are left alone.

    Returns:
        The number of elements that became trainable. Parameters held by a running Freezer train once it
        releases them.
    """
    return thaw(model, canonical_parameters(model), "The model")


@checked
def freeze_embeddings(model: nn.Module, **said: Unpack[Said]) -> int:
    """Freeze everything before the first layer: embedding tables, positions, patches, a stem.

    Args:
        model: Any module. If the head shares the weight of an embedding, the head is frozen too, with a
            warning.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Returns:
        The number of elements that were trainable and are now frozen.

    Raises:
        ValueError: The model has no embeddings.
    """
    anatomy = anatomy_said(model, said)
    frozen = freeze(model, _embeddings(model, anatomy, said), "The embeddings")
    if anatomy.tied:
        log.warning("'%s' is also the weight of the head, which is frozen with it.", anatomy.tied[0])
    return frozen


@checked
def unfreeze_embeddings(model: nn.Module, **said: Unpack[Said]) -> int:
    """Unfreeze the embeddings, along with a head that shares their weight.

    Args:
        model: Any module. In embeddings with LoRA, only the factors are thawed.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Returns:
        The number of elements that became trainable. Parameters held by a running Freezer train once it
        releases them.

    Raises:
        ValueError: The model has no embeddings.
    """
    names = _embeddings(model, anatomy_said(model, said), said)
    return thaw_layers(model, [names], "The embeddings")


@checked
def freeze_lm_head(model: nn.Module, **said: Unpack[Said]) -> int:
    """Freeze the head: what comes after the layers and the norm, such as an `lm_head` or a classifier.

    Args:
        model: Any module. If the head shares the weight of an embedding, the embedding is frozen too, with
            a warning.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Returns:
        The number of elements that were trainable and are now frozen.

    Raises:
        ValueError: The model has no head.
    """
    anatomy = anatomy_said(model, said)
    frozen = freeze(model, _head(model, anatomy, said), "The head")
    if anatomy.tied:
        log.warning("The head's weight is also '%s', which is frozen with it.", anatomy.tied[0])
    return frozen


@checked
def unfreeze_lm_head(model: nn.Module, **said: Unpack[Said]) -> int:
    """Unfreeze the head, along with an embedding that shares its weight.

    Args:
        model: Any module. In a head with LoRA, only the factors are thawed.
        **said: `tower` for one tower, and `blocks`, `head`, `embeddings` as for `anatomy_of`.

    Returns:
        The number of elements that became trainable. Parameters held by a running Freezer train once it
        releases them.

    Raises:
        ValueError: The model has no head.
    """
    return thaw_layers(model, [_head(model, anatomy_said(model, said), said)], "The head")


@checked
def freeze_by_name(model: nn.Module, patterns: str | Sequence[str], case_sensitive: bool = True) -> int:
    r"""Freeze the parameters whose names match a regular expression anywhere.

    | patterns | what is frozen |
    |---|---|
    | `"attn"` | every parameter with `attn` anywhere in its name |
    | `[".*attention.*", ".*attn.*"]` | every parameter that matches either pattern |
    | `r"\.bias$"` | all biases |
    | `"layernorm"`, `case_sensitive=False` | also a `LayerNorm` |

    Args:
        model: Any module. A tied weight is found by each of its names.
        patterns: One regular expression or several; they need not all match.
        case_sensitive: False to ignore case.

    Returns:
        The number of elements that were trainable and are now frozen.

    Raises:
        TypeError: A pattern is not a string.
        ValueError: A pattern is not a regular expression, or no name matches any of them.
    """
    return freeze(model, _matches(model, patterns, case_sensitive), f"What matches {patterns!r}")


@checked
def unfreeze_by_name(model: nn.Module, patterns: str | Sequence[str], case_sensitive: bool = True) -> int:
    """Unfreeze the parameters whose names match a regular expression anywhere.

    Args:
        model: Any module. A tied weight is found by each of its names.
        patterns: One regular expression or several; they need not all match.
        case_sensitive: False to ignore case.

    Returns:
        The number of elements that became trainable. Parameters held by a running Freezer train once it
        releases them.

    Raises:
        TypeError: A pattern is not a string.
        ValueError: A pattern is not a regular expression, or no name matches any of them.
    """
    return thaw(model, _matches(model, patterns, case_sensitive), f"What matches {patterns!r}")


def _embeddings(model: nn.Module, anatomy: Anatomy, said: Said) -> Sequence[str]:
    if not anatomy.embeddings:
        raise ValueError(
            f"{anatomy.model_class} has no embeddings: no nn.Embedding and nothing in front of its layers. "
            f"Say them, as in embeddings=['stem'], or use freeze_by_name or unfreeze_by_name."
        )
    return of_tower(model, anatomy, said, "embeddings", anatomy.embeddings)


def _head(model: nn.Module, anatomy: Anatomy, said: Said) -> Sequence[str]:
    if not anatomy.head_weights:
        raise ValueError(
            f"{anatomy.model_class} has no head: nothing comes after its layers. "
            f"Say it, as in head=['classifier'], or use freeze_by_name or unfreeze_by_name."
        )
    return of_tower(model, anatomy, said, "head", anatomy.head_weights)


def _matches(model: nn.Module, patterns: str | Sequence[str], case_sensitive: bool) -> list[str]:
    """Canonical names of the parameters that a pattern matches under any of their names."""
    ignored = re.RegexFlag(0) if case_sensitive else re.IGNORECASE
    searches = [_compiled(pattern, ignored).search for pattern in _listed(patterns)]
    aliases = list(named_aliases(model))
    found = {id(parameter) for name, parameter in aliases if any(search(name) for search in searches)}
    if not found:
        close = ", ".join(f"'{name}'" for name in closest_names(_listed(patterns)[0], dict(aliases)))
        raise ValueError(f"No parameter name matches {patterns!r}. Closest names: {close}.")
    return [name for name, parameter in canonical_parameters(model).items() if id(parameter) in found]


def _listed(patterns: str | Sequence[str]) -> list[str]:
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not listed:
        raise ValueError("patterns is empty: write at least one regular expression.")
    return list(listed)


def _compiled(pattern: str, flags: re.RegexFlag) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}.") from error
