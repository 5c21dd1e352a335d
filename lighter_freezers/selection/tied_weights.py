"""The parameters below marked paths, without exceptions, with tied weights resolved.

`select.py` converts rules to paths.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TypeAlias

from torch import nn

from lighter_freezers.selection.names import (
    TECHNICAL_SEGMENTS,
    join,
    layout,
    named_aliases,
)

__all__ = ["Marks", "TiedWeights", "collect"]

Found: TypeAlias = dict[str, nn.Parameter]
NOTHING: frozenset[str] = frozenset()


class Marks:
    """Paths that are taken whole.

    Attributes:
        below: Path of a module to the names in it that are taken whole.
        towards: Path of a module to the names in it that have something taken further down.
    """

    def __init__(self) -> None:
        self.below: dict[str, set[str]] = {}
        self.towards: dict[str, set[str]] = {}

    def add(self, module: str, names: Iterable[str]) -> None:
        """Take parameters, and children with all below them, of the module at a path."""
        if module in self.below:
            self.below[module].update(names)
            return
        self.below[module] = set(names)
        while module:
            module, _, name = module.rpartition(".")
            names_towards = self.towards.setdefault(module, set())
            if name in names_towards:
                break
            names_towards.add(name)

    def covers(self, path: str) -> bool:
        """Whether a path is taken, itself or with a module around it."""
        while path:
            path, _, name = path.rpartition(".")
            if name in self.below.get(path, NOTHING):
                return True
        return False


class TiedWeights:
    """The parameters that a model holds under more than one name; of use while its modules stay as they are.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @cached_property
    def identities(self) -> set[int]:
        """Their identities."""
        held: list[nn.Parameter | None] = []
        modules: list[nn.Module | None] = [self.model]
        opened: set[nn.Module] = set()
        for module in modules:  # grows while it is read
            if module is None:
                continue
            if module._parameters:
                held += module._parameters.values()
            if module in opened:
                held += module.parameters()  # again: all of these have a second name
            elif module._modules:
                opened.add(module)
                modules += module._modules.values()
        identities = list(map(id, held))
        if len(set(identities)) == len(identities):
            return set()
        return {identity for identity, times in Counter(identities).items() if times > 1} - {id(None)}

    @cached_property
    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Every parameter of the model, under each of its names."""
        return list(named_aliases(self.model))


def collect(tied: TiedWeights, kept: Marks, excepted: Marks) -> dict[str, nn.Parameter]:
    """The parameters that are kept and not excepted.

    Args:
        tied: The tied weights of the model the marks were made for.
        kept: Paths to take.
        excepted: Paths to leave out.

    Returns:
        Canonical name to parameter in model order. A tied weight is kept if any of its names is, left out if
        any is excepted, and listed under its first.
    """
    found: Found = {}
    if not kept.below:
        return found
    _collect_marked(tied.model, "", kept, excepted, False, found)
    if not tied.identities:
        return found
    aliases: dict[int, list[str]] = {}
    for name, parameter in tied.named_parameters:
        if id(parameter) in tied.identities:
            aliases.setdefault(id(parameter), []).append(name)
    chosen = {names[0] for names in aliases.values() if _is_chosen(names, kept, excepted)}
    chosen.update(name for name, parameter in found.items() if id(parameter) not in tied.identities)
    return {name: parameter for name, parameter in tied.named_parameters if name in chosen}


def _collect_marked(
    module: nn.Module, path: str, kept: Marks, excepted: Marks, is_whole: bool, found: Found
) -> None:
    """Go down where something is marked; strings are made for what is found, and for nothing else."""
    taken, refused = kept.below.get(path, NOTHING), excepted.below.get(path, NOTHING)
    towards, refused_towards = kept.towards.get(path, NOTHING), excepted.towards.get(path, NOTHING)
    prefix = join(path, "")
    parameters, children = layout(module, at_root=not path)
    for name, parameter in parameters.items():
        if parameter is not None and (is_whole or name in taken) and name not in refused:
            found[prefix + name] = parameter
    for name, child in children.items():
        if child is None or name in refused:
            continue
        if is_whole or name in taken:
            if name in refused_towards:
                _collect_marked(child, prefix + name, kept, excepted, True, found)
            else:
                _collect_whole(child, f"{prefix}{name}.", found)
        elif name in towards:
            _collect_marked(child, prefix + name, kept, excepted, False, found)


def _collect_whole(module: nn.Module, prefix: str, found: Found) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            found[prefix + name] = parameter
    children = module._modules
    if children:
        for name, child in children.items():
            if child is not None:
                _collect_whole(child, prefix if name in TECHNICAL_SEGMENTS else f"{prefix}{name}.", found)


def _is_chosen(aliases: Sequence[str], kept: Marks, excepted: Marks) -> bool:
    """Decide on a tied weight by all its names: an exception wins, with a warning if for another name."""
    asked = [name for name in aliases if kept.covers(name)]
    refused = [name for name in aliases if excepted.covers(name)]
    if refused and set(asked) - set(refused):
        warnings.warn(
            f"'{asked[0]}' is selected but tied to '{refused[0]}', which is excepted: they are one tensor, "
            f"and it is left out. Except both names, or neither.",
            stacklevel=5,
        )
    return bool(asked) and not refused
