"""Rules written as patterns: globs, `re:`, `class:` and `layers:`; each becomes a list of parameter names."""

import fnmatch
import re
from collections.abc import Sequence

from torch import nn

from lighter_freezers.selection.anatomy import Anatomy
from lighter_freezers.selection.layer_names import parameters_of_layer
from lighter_freezers.selection.names import closest_names, join, walk, without_wrapper

__all__ = ["check_pattern", "match_class", "match_glob", "match_layers", "match_regex", "split_kind"]

KINDS = ("re", "class", "layers")


def split_kind(pattern: str) -> tuple[str, str]:
    """Split `class:BatchNorm2d` into its kind and the rest; a pattern without a kind is a "glob"."""
    kind, colon, rest = pattern.partition(":")
    return (kind, rest) if colon and kind in KINDS else ("glob", pattern)


def check_pattern(argument: str, pattern: str) -> None:
    """Refuse a pattern that no model can match.

    Args:
        argument: Name of the argument the pattern was given in.
        pattern: A glob, `re:REGEX`, `class:NAME` or `layers:LAYER`.
    """
    kind, rest = split_kind(pattern)
    head, colon, _ = pattern.partition(":")
    if kind == "glob" and colon and head.isidentifier():
        raise ValueError(
            f"{argument}: '{head}:' in '{pattern}' is not a kind of pattern, the closest is "
            f"'{closest_names(head, KINDS, 1)[0]}:'. Write 're:', 'class:', 'layers:' or a glob: '*.bias'."
        )
    if not rest.strip():
        raise ValueError(f"{argument}: nothing follows '{kind}:' in '{pattern}'.")
    if kind == "re":
        try:
            re.compile(rest)
        except re.error as error:
            raise ValueError(f"{argument}: '{rest}' is not a regular expression: {error}.") from error


def match_glob(glob: str, names: Sequence[str]) -> list[str]:
    """The names a shell pattern matches in full; `*` also crosses dots."""
    matches = re.compile(fnmatch.translate(glob)).match
    return [name for name in names if matches(name)]


def match_regex(regex: str, names: Sequence[str]) -> list[str]:
    """The names in which a regular expression is found; if there are none, without their leading wrapper."""
    search = re.compile(regex).search
    found = [name for name in names if search(name)]
    return found or [name for name in names if search(without_wrapper(name))]


def match_class(class_name: str, model: nn.Module) -> list[str]:
    """The names of all parameters in modules of a class, or of a class derived from it.

    Raises:
        ValueError: If no module is of that class.
    """
    owners = [(path, module) for path, module in walk(model) if class_name in _class_names(module)]
    if not owners:
        present = sorted({type(module).__name__ for _, module in walk(model)})
        raise ValueError(f"no module is of class '{class_name}'; the model has {', '.join(present)}")
    inside = (walk(module, path, at_root=not path) for path, module in owners)
    found = (
        join(path, name)
        for modules in inside
        for path, module in modules
        for name, parameter in module._parameters.items()
        if parameter is not None
    )
    return list(dict.fromkeys(found))


def _class_names(module: nn.Module) -> set[str]:
    return {cls.__name__ for cls in type(module).__mro__}


def match_layers(layers: str, model: nn.Module, anatomy: Anatomy) -> list[str]:
    """The names of the parameters of `attn.2`, `attn.0-3`, `attn.*`, `wte`, ...

    Raises:
        ValueError: If the model has no such layer.
    """
    return list(parameters_of_layer(model, layers, anatomy))
